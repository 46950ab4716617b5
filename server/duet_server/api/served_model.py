"""What the API knows about the served model: shape, limits and defaults. They never change while the server runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

from duet_server.api.errors import RequestRefusedError, invalid_settings
from duet_server.api.options import ServerOptions
from duet_server.demo import DEMO_MARK, DEMO_NOTICE
from duet_server.plan import (
    CompressionField,
    CompressionSettings,
    ModelShape,
    SettingsError,
    presets,
    resolve_settings,
)
from duet_server.plan.errors import Words
from duet_server.plan.presets import REFERENCE_NUM_PATCHES


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The served model. ``shape`` is None if it is served without compression."""

    name: str
    shape: ModelShape | None
    default: CompressionField
    max_reduction: float
    max_num_batched_tokens: int
    kv_dtype_bytes: int
    notice: str | None
    unit: str = "image"
    overview: int = 0  # which of an image's units shows the whole image
    is_proven: bool = True
    max_excess: float = math.inf  # positions that a prompt may have beyond its tokens

    @classmethod
    def from_config(cls, vllm_config: Any, options: ServerOptions) -> ServedModel:
        """Read vLLM's configuration. Raises SettingsError if the default compression cannot be served."""
        model_config = vllm_config.model_config
        kv_dtype: torch.dtype = kv_cache_dtype_str_to_dtype(vllm_config.cache_config.cache_dtype, model_config)
        about = vllm_config.additional_config.get("duet", {}).get("served") or {}
        most, context = about.get("max_positions"), model_config.max_model_len
        served = cls(
            name=model_config.served_model_name,
            shape=model_shape(vllm_config),
            default=options.default,
            max_reduction=options.max_reduction,
            max_num_batched_tokens=max_step_tokens(vllm_config),
            kv_dtype_bytes=kv_dtype.itemsize,
            notice=DEMO_NOTICE if getattr(model_config.hf_config, DEMO_MARK, False) else None,
            unit=about.get("unit", "image"),
            overview=about.get("overview", 0),
            is_proven=about.get("is_proven", True),
            max_excess=math.inf if most is None else max(0, most - context),
        )
        served._check_default()
        return served

    def resolve(self, compression: CompressionField | None) -> CompressionSettings | None:
        """The settings of a request; None on a model without compression, which accepts only ``off``.

        Raises:
            RequestRefusedError: if this server cannot serve the settings.
        """
        if self.shape is None:
            if compression not in (None, "off"):
                raise RequestRefusedError(
                    "unsupported", "compression", compression, "off: this model is served without compression"
                )
            return None
        try:
            return resolve_settings(compression, self.shape, default=self.default, max_reduction=self.max_reduction)
        except SettingsError as error:
            raise invalid_settings(error) from error

    def refuse_prompt(self) -> RequestRefusedError:
        """The error of plan and preview for a prompt whose visual tokens are not counted."""
        if self.shape is None:
            return RequestRefusedError("unsupported", "model", self.name, "a model that is served with compression")
        return RequestRefusedError("unsupported", "messages", Words("made of image embeddings"), "images")

    def describe(self) -> dict[str, Any]:
        """The body of ``GET /v1/compression``."""
        about: dict[str, Any] = {"model": self.name, "supported": self.shape is not None}
        if self.notice:
            about["notice"] = self.notice
        if self.shape is None:
            return about
        decoder, vision = self.shape.decoder, self.shape.vision
        return about | {
            "num_layers": decoder.num_layers,
            "boundaries": list(self.shape.boundaries),
            "visual_tokens_per_image": vision.num_patches,
            "modalities": {"image": {"unit": self.unit, "quality": "published" if self.is_proven else "unproven"}},
            "default": self.default,
            "presets": {name: self._describe_preset(settings) for name, settings in self._presets().items()},
            "limits": {
                "max_reduction": self.max_reduction,
                "max_num_batched_tokens": self.max_num_batched_tokens,
            },
        }

    def _presets(self) -> dict[str, CompressionSettings]:
        """The presets that a request may name: their reduction is within ``max_reduction``."""
        assert self.shape is not None
        typical, least = self._typical_shape, (1 - self.max_reduction) * self._typical_shape.num_patches
        return {name: p for name, p in presets(self.shape).items() if p.layer_average(typical) >= least}

    @property
    def _typical_shape(self) -> ModelShape:
        """The shape with the size of every image, or with the size for which the authors made their presets."""
        assert self.shape is not None
        return self.shape if self.shape.vision.num_patches else self.shape.at(REFERENCE_NUM_PATCHES)

    def _describe_preset(self, settings: CompressionSettings) -> dict[str, Any]:
        assert self.shape is not None
        average, num_patches = settings.layer_average(self._typical_shape), self.shape.vision.num_patches
        reduction = {"reduction": round(1 - average / self._typical_shape.num_patches, 4)}
        described = {key: value for key, value in settings.as_dict().items() if key != "preset"}
        if num_patches is None:
            return described | reduction
        counts = {
            "visual_tokens": settings.num_entering(num_patches),
            "segments": list(settings.segment_counts(num_patches)),
            "layer_average": round(average, 4),
        }
        return described | counts | reduction

    def _check_default(self) -> None:
        try:
            self.resolve(self.default)
        except RequestRefusedError as error:
            field = f"--duet-default{error.parameter.removeprefix('compression')}"
            raise SettingsError(field, error.value, error.expected) from error


def max_step_tokens(vllm_config: Any) -> int:
    """The most tokens that one engine step computes."""
    scheduler = vllm_config.scheduler_config
    most: int = scheduler.max_num_batched_tokens
    return min(scheduler.max_num_scheduled_tokens or most, most)


def model_shape(vllm_config: Any) -> ModelShape | None:
    """The served model's shape; None for a model without compression.

    The engine's plugin leaves it in the configuration, with ``served`` if the model takes images.
    """
    return ModelShape.from_dict(vllm_config.additional_config["duet"]["shape"]) if is_served(vllm_config) else None


def is_served(vllm_config: Any) -> bool:
    """Whether the model is served with compression."""
    return bool(vllm_config.additional_config.get("duet", {}).get("served"))

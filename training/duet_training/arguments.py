"""Reads a training configuration and checks DUET's keys. All other keys belong to transformers' TrainingArguments."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import yaml
from transformers import TrainingArguments

from duet_training.records import ON_BAD_DATA

PARTS = ("tower", "projector", "language_model")
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("sdpa", "sdpa_float32", "flash_attention_2", "flash_attention_3")


class ConfigError(ValueError):
    """A mistake in a configuration, described in one sentence."""


@dataclass(frozen=True)
class DuetArguments:
    """The configuration keys that belong to DUET.

    Raises:
        ConfigError: if a value is invalid.
    """

    model: str
    """A LLaVA checkpoint: a path, or a name on the Hugging Face Hub."""
    data: str
    """A JSON file of conversations in LLaVA's format."""
    images: str
    """The folder to which the image paths in the data are relative."""
    compression: str | Mapping[str, Any] | Sequence[Any] = "off"
    """As in a request to the server. From a list, each process draws one setting at random for every batch."""
    boundaries: Sequence[int] | None = None
    """Decoder layers before which visual tokens may be dropped. The default is half and three quarters of the depth."""
    train: Sequence[str] = ("projector", "language_model")
    """The parts of the model that are trained."""
    lora: Mapping[str, Any] | None = None
    """Arguments of PEFT's LoraConfig. The language model then trains adapters instead of its own weights."""
    on_bad_data: str = "refuse"
    max_length: int = 2048
    """The most tokens of a conversation, visual tokens included."""
    dtype: str = "float32"
    """The dtype of the weights. With float32 weights and ``bf16: true``, transformers computes in bfloat16."""
    attention: str = "sdpa"
    compile: bool = False
    """Compile the decoder layers with torch.compile: steps are faster, but the first ones take a minute longer."""
    resume: bool = True
    """Resume from the last checkpoint in ``output_dir``, if there is one."""

    def __post_init__(self) -> None:
        _check_choice("on_bad_data", self.on_bad_data, ON_BAD_DATA)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("attention", self.attention, ATTENTIONS)
        if isinstance(self.train, str) or not self.train:
            raise ConfigError(f"train is {self.train!r}, expected a list of {', '.join(PARTS)}")
        for part in self.train:
            _check_choice("train", part, PARTS)
        if self.lora is not None and not isinstance(self.lora, Mapping):
            raise ConfigError(f"lora is {self.lora!r}, expected arguments of PEFT's LoraConfig, such as {{r: 64}}")
        if self.lora is not None and ("language_model" not in self.train or "tower" in self.train):
            raise ConfigError("lora adapts only the language model, so train must list language_model but not tower")
        if not self.compressions:
            raise ConfigError("compression is an empty list, expected at least one setting")
        if not isinstance(self.max_length, int):
            raise ConfigError(f"max_length is {self.max_length!r}, expected a number of tokens")

    @property
    def compressions(self) -> Sequence[Any]:
        return self.compression if isinstance(self.compression, list | tuple) else [self.compression]


def read_arguments(config: Path, overrides: Sequence[str] = ()) -> tuple[DuetArguments, TrainingArguments]:
    """Read a YAML configuration. Each ``key=value`` in ``overrides`` replaces the value of that key; values are YAML.

    Raises:
        ConfigError: if a key is missing or unknown, or if its value is invalid. The message names the key.
    """
    values = _read_yaml(config)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"override is {override!r}, expected key=value, such as learning_rate=1.0e-4")
        values[key] = yaml.load(value, _Loader)
    duet_keys, training_keys = ([field.name for field in fields(kind)] for kind in (DuetArguments, TrainingArguments))
    for key, value in values.items():
        _check_key(key, [*duet_keys, *training_keys])
        _check_switch(key, value)
    for key in ("model", "data", "images", "output_dir"):
        if not values.get(key):
            raise ConfigError(f"{config} does not set {key}")
    duet = DuetArguments(**{key: value for key, value in values.items() if key in duet_keys})
    rest = {key: value for key, value in values.items() if key not in duet_keys}
    try:
        training = TrainingArguments(**{**_DEFAULTS, **rest})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"transformers rejects {config}: {error}") from error
    _check_together(duet, training)
    return duet, training


def _check_together(duet: DuetArguments, training: TrainingArguments) -> None:
    """Reject values that Trainer accepts but that have no effect or do not work here."""
    if training.label_smoothing_factor:
        raise ConfigError(f"label_smoothing_factor is {training.label_smoothing_factor}, expected 0 (not implemented)")
    if training.resume_from_checkpoint is not None:
        raise ConfigError(
            "resume_from_checkpoint has no effect, expected resume: true, for the last checkpoint in output_dir"
        )
    if training.save_only_model and duet.resume:
        raise ConfigError("save_only_model saves no state to resume from, expected resume: false")
    if duet.lora is not None and duet.dtype != "float32" and not training.bf16:
        raise ConfigError(f"lora with dtype: {duet.dtype} needs bf16: true, because adapters are float32")


# The collator returns exactly the model's arguments, so Trainer must not remove any of them.
_DEFAULTS = {"remove_unused_columns": False, "report_to": "none"}


class _Loader(yaml.SafeLoader):
    """Reads scalars as in YAML 1.2: ``off`` and ``no`` are strings, and 1e-4 is a number."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _read_yaml(config: Path) -> dict[str, Any]:
    try:
        values = yaml.load(config.read_text(), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {config}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{config} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{config} has no keys")
    return values


def _check_key(key: str, known: Sequence[str]) -> None:
    if key not in known:
        similar = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {similar[0]}?" if similar else " in DUET or in transformers' TrainingArguments"
        raise ConfigError(f"there is no key {key!r}{hint}")


def _check_switch(key: str, value: Any) -> None:
    """Reject words such as ``no`` and ``off``: as non-empty strings, they would count as true."""
    types = [
        str(field.type) for kind in (DuetArguments, TrainingArguments) for field in fields(kind) if field.name == key
    ]
    if isinstance(value, str) and any("bool" in kind and "str" not in kind for kind in types):
        raise ConfigError(f"{key} is {value!r}, expected true or false")


def _check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} is {value!r}, expected one of {', '.join(choices)}")

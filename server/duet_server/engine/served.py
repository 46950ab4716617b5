"""The classes that vLLM loads, by architecture: ``getattr(served, architecture)``. They are made on first use.

Each is vLLM's own class with :class:`DuetModel` in front, and its processor is vLLM's own with
:class:`DuetProcessor` in front.
"""

import importlib
from typing import Any

from vllm.model_executor.models.registry import _VLLM_MODELS
from vllm.multimodal import MULTIMODAL_REGISTRY

from duet_server.engine.backbones.backbone import Backbone
from duet_server.engine.backbones.table import backbone_of
from duet_server.engine.model import DuetModel
from duet_server.engine.positions import KeptPositions
from duet_server.engine.processor import DuetProcessingInfo, DuetProcessor


def __getattr__(architecture: str) -> Any:
    backbone = backbone_of(architecture)
    if backbone is None:
        raise AttributeError(architecture)
    served = _with_compression(_vllm_class(architecture), backbone)
    globals()[architecture] = served
    return served


def _vllm_class(architecture: str) -> Any:
    module, name = _VLLM_MODELS[architecture]
    return getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)


def _with_compression(vllm_class: Any, backbone: Backbone) -> type:
    mixins = (KeptPositions, DuetModel) if backbone.decoder.positions == "kept" else (DuetModel,)
    factories = vllm_class._processor_factory

    def info(*args: Any, **kwargs: Any) -> Any:
        return _made_with(DuetProcessingInfo, backbone, factories.info, *args, **kwargs)

    def processor(*args: Any, **kwargs: Any) -> Any:
        return _made_with(DuetProcessor, backbone, factories.processor, *args, **kwargs)

    served = type(vllm_class.__name__, (*mixins, vllm_class), {"backbone": backbone, "__module__": __name__})
    register = MULTIMODAL_REGISTRY.register_processor(processor, info=info, dummy_inputs=factories.dummy_inputs)
    return register(served)


def _made_with(mixin: type, backbone: Backbone, factory: Any, *args: Any, **kwargs: Any) -> Any:
    """What vLLM's factory makes, of a class with the mixin in front. The factory may be a function that chooses one."""
    vllm_class = type(factory(*args, **kwargs))
    made: Any = type(f"Duet{vllm_class.__name__}", (mixin, vllm_class), {"backbone": backbone})
    return made(*args, **kwargs)

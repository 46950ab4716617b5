"""The table of backbones: which file knows which of vLLM's architectures."""

import functools
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_server.engine.backbones.backbone import Backbone

ENTRY_POINTS = "duet_server.backbones"  # name: an architecture; value: "module:Class"

BACKBONES = {
    "InternVLChatModel": "internvl:InternVLChat",
    "InternVLForConditionalGeneration": "internvl:InternVL",
    "LlavaForConditionalGeneration": "llava:Llava",
    "LlavaNextForConditionalGeneration": "llava_next:LlavaNext",
    "Qwen2VLForConditionalGeneration": "qwen2_vl:Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_vl:Qwen25VL",
    "Qwen3VLForConditionalGeneration": "qwen3_vl:Qwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl:Qwen3VL",
}


@functools.cache
def backbones() -> dict[str, str]:
    """The path of each architecture's backbone; installed packages may add to the table and replace entries."""
    own = {architecture: f"{__package__}.{path}" for architecture, path in BACKBONES.items()}
    return own | {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


@functools.cache
def backbone_of(architecture: str) -> "Backbone | None":
    """The backbone of an architecture; None if the engine does not compress it."""
    path = backbones().get(architecture)
    if path is None:
        return None
    module, _, name = path.partition(":")
    backbone: Backbone = getattr(importlib.import_module(module), name)()
    return backbone

"""Plans: only this package turns ratios into token counts. It imports the standard library only."""

from duet_server.plan.cost import kv_bytes, kv_token_layers, layer_average, prefill_flops
from duet_server.plan.errors import SettingsError
from duet_server.plan.items import VisualItem, plan_prompt
from duet_server.plan.layout import (
    GUIDE_CHOICES,
    PromptLayout,
    Span,
    VisualRows,
    check_ends_on_text,
    guiding_rows,
    make_layout,
)
from duet_server.plan.llava import check_llava, llava_shape, num_tower_layers
from duet_server.plan.presets import default_keep, duet_keep, presets
from duet_server.plan.resolve import DEFAULT_MAX_REDUCTION, CompressionField, check_item, resolve_settings
from duet_server.plan.segments import RequestPlan, SegmentPlan, lay_out, make_plan, num_kept, text_rows
from duet_server.plan.settings import Budget, CompressionSettings, off_settings
from duet_server.plan.shape import DecoderShape, ModelShape, VisionShape, check_boundaries, default_boundaries
from duet_server.plan.units import Stage1Rule, Unit, any_cut, cut_units, excess_positions
from duet_server.plan.usage import compression_usage

__all__ = [
    "DEFAULT_MAX_REDUCTION",
    "GUIDE_CHOICES",
    "Budget",
    "CompressionField",
    "CompressionSettings",
    "DecoderShape",
    "ModelShape",
    "PromptLayout",
    "RequestPlan",
    "SegmentPlan",
    "SettingsError",
    "Span",
    "Stage1Rule",
    "Unit",
    "VisionShape",
    "VisualItem",
    "VisualRows",
    "any_cut",
    "check_boundaries",
    "check_ends_on_text",
    "check_item",
    "check_llava",
    "compression_usage",
    "cut_units",
    "default_boundaries",
    "default_keep",
    "duet_keep",
    "excess_positions",
    "guiding_rows",
    "kv_bytes",
    "kv_token_layers",
    "lay_out",
    "layer_average",
    "llava_shape",
    "make_layout",
    "make_plan",
    "num_kept",
    "num_tower_layers",
    "off_settings",
    "plan_prompt",
    "prefill_flops",
    "presets",
    "resolve_settings",
    "text_rows",
]

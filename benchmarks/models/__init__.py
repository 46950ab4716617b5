"""The models that the benchmarks serve: published shapes, and small ones with similar shares of tower FLOPs."""

from __future__ import annotations

from benchmarks.models.base import BenchmarkModel
from benchmarks.models.llava import LLAVA_7B, SMALL
from benchmarks.models.qwen3_vl import QWEN3_VL_8B, SMALL_QWEN3_VL

LLAVAS = {"small": SMALL, "llava-1.5-7b": LLAVA_7B}
MODELS: dict[str, BenchmarkModel] = {**LLAVAS, "small-qwen3-vl": SMALL_QWEN3_VL, "qwen3-vl-8b": QWEN3_VL_8B}
MODEL_DIR_HELP = "folder for the model; a later run with it reuses what vLLM compiled (a new temporary folder)"

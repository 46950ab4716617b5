"""``sdpa_float32``: transformers' sdpa attention, computed in float32 even if the model computes in another dtype.

On CPUs, torch's attention is exact in float32, and its backward pass is several times faster than in bfloat16.
Importing this module registers the name for ``attn_implementation``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

SDPA_FLOAT32 = "sdpa_float32"


def sdpa_float32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)
    return output.to(query.dtype), None


AttentionInterface.register(SDPA_FLOAT32, sdpa_float32)

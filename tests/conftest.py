"""What has to be set before Triton is first imported."""

import os

import torch

if torch.cuda.is_available():
    os.environ["TRITON_F32_DEFAULT"] = "ieee"  # vLLM's kernels, too, are to compute float32 as such, not as TF32
else:
    os.environ["TRITON_INTERPRET"] = "1"

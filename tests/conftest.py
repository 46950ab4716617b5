"""Without a GPU, Triton kernels run under Triton's interpreter, which they choose when they are first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

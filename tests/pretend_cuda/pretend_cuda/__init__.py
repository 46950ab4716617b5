"""One H100 that is not there: the CUDA path's Python runs, on tensors that stay on the CPU.

vLLM's CUDA platform, its model runners, its attention backends with their metadata, its plans for CUDA graphs, and
DUET's engine on top of them are real. The device (`device.py`), what the driver says of it (`nvml.py`), vLLM's
compiled operators (`operators.py`), attention (`attention.py`) and CUDA graphs (`graphs.py`) are pretended. Triton
interprets all other kernels.

A rehearsal finds what Python can get wrong. It says nothing about the real kernels' results, memory, streams and races,
captures that CUDA itself refuses, or speed.
"""

from __future__ import annotations


def install() -> None:
    """Pretend from now on; before anything but torch is imported."""
    from pretend_cuda import attention, device, graphs, nvml, on_import, operators

    device.install()
    graphs.install()
    on_import.patch(
        {
            "torch._inductor.output_code": graphs.launch_compiled,
            "vllm.third_party.pynvml": nvml.install,
            "vllm.platforms.cuda": operators.dispatch_on_the_cpu,
            "vllm._custom_ops": operators.install,
            "vllm.utils.flashinfer": lambda module: setattr(module, "has_flashinfer", lambda: False),  # compiles CUDA
            "vllm.utils.torch_utils": graphs.remember_python_operators,
            "vllm.v1.attention.ops.triton_unified_attention": attention.replace_triton_kernel,
            # Its kernel sorts by inline assembly, which the interpreter lacks; vLLM then samples by plain torch.
            "vllm.v1.sample.ops.topk_topp_sampler": lambda module: setattr(module, "HAS_TRITON", False),
        }
    )

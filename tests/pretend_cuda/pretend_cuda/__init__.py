"""Pretends one H100: the Python code of the CUDA path runs, with tensors that stay on the CPU.

vLLM's CUDA platform, its model runners, its attention backends with their metadata, its plans for CUDA graphs, and
DUET's engine on top of them are real. The device (`device.py`), the driver's answers about it (`nvml.py`), vLLM's
compiled operators (`operators.py`), attention (`attention.py`) and CUDA graphs (`graphs.py`) are pretended. Triton
interprets all other kernels.

A rehearsal finds faults in Python code. It does not test the real kernels' results, memory, streams and races, captures
that CUDA itself refuses, or speed.
"""

from __future__ import annotations


def install() -> None:
    """Pretend from now on. Call this when only torch has been imported."""
    from pretend_cuda import attention, device, graphs, nvml, on_import, operators

    device.install()
    graphs.install()
    on_import.patch(
        {
            "torch._inductor.output_code": graphs.launch_compiled,
            "vllm.third_party.pynvml": nvml.install,
            "vllm.platforms.cuda": operators.dispatch_on_the_cpu,
            "vllm._custom_ops": operators.install,
            "vllm.utils.flashinfer": lambda module: setattr(
                module, "has_flashinfer", lambda: False
            ),  # it compiles CUDA
            "vllm.utils.torch_utils": graphs.remember_python_operators,
            "vllm.v1.attention.ops.triton_unified_attention": attention.replace_triton_kernel,
            # Its kernel sorts with inline assembly, which the interpreter lacks. vLLM then samples with plain torch.
            "vllm.v1.sample.ops.topk_topp_sampler": lambda module: setattr(module, "HAS_TRITON", False),
        }
    )

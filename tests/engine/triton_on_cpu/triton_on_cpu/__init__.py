"""A Triton backend named ``cpu`` that compiles nothing.

vLLM picks its V2 runner on a CPU where Triton has one; with TRITON_INTERPRET=1 the runner's kernels are interpreted.
The folder above goes onto PYTHONPATH, before Triton is first imported.
"""

"""A Triton backend named ``cpu`` that compiles nothing.

vLLM chooses its V2 runner on a CPU if Triton has such a backend. With TRITON_INTERPRET=1, the runner's kernels are
interpreted. The folder above must be in PYTHONPATH before Triton is first imported.
"""

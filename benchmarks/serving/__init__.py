"""Compares duet-server with stock vLLM under load: ``python -m benchmarks.serving``."""

"""duet-server against stock vLLM under load: ``python -m benchmarks.serving``."""

"""Benchmarks of the kernels alone: ``python -m benchmarks.kernels``."""

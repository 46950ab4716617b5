"""The kernels of both stages on their own: ``python -m benchmarks.kernels``."""

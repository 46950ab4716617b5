"""Benchmarks and long checks of duet-server; results are stored in ``results/``."""

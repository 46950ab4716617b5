"""Measurements of duet-server; results are kept in ``results/``."""

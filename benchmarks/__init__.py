"""Measurements; run with ``python -m benchmarks.<name>``, never part of the tests."""

"""Measures of speed, each against a named reference in the same run: `python -m benchmarks.all`."""

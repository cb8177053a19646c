"""Measurements of quality, speed and memory: `make bench`, or `python -m benchmarks NAME`.

Each is a ratio within one run, so that the machine matters little. Results are in `docs/benchmarks.md`.
"""

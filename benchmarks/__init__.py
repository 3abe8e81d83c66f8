"""Benchmarks of replknet_ext. Run them from the repository's root: `python -m benchmarks.cpu_ops`."""

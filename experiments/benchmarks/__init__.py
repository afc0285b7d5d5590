"""Benchmarks: the step, other implementations of it, the loader, what a machine can do at best."""

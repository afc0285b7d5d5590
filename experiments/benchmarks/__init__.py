"""Benchmarks: the step, other implementations of it, the loader, the limits of the machine."""

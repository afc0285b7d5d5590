"""Contestants: each is the main module of a process of its own.

Those that begin with ``torch_`` run in an environment without JAX. They, and what they import, may
use NumPy, PyTorch, and of this project only `peers.problem` and `peers.workers.protocol`.
"""

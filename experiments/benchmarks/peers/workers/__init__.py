"""Contestants: each is the main module of its own process.

Modules that begin with ``torch_`` run in an environment without JAX. They and their imports may use
NumPy, PyTorch, and of this project only `peers.problem` and `peers.workers.protocol`.
"""

"""The contestants, by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.errors import UserError
from experiments.benchmarks.peers import environment
from experiments.benchmarks.peers.contestant import Worker

_WORKERS = "experiments.benchmarks.peers.workers"

# Threads wait actively: if they sleep at once, a step with 128 examples takes three times as long.
_TORCH_ENVIRONMENT = {"OMP_WAIT_POLICY": "active"}

_TORCH_MODULES = {
    "torch_plain": "torch_plain",
    "fbgemm": "torch_fbgemm",
    "torchrec": "torch_torchrec",
}

# Suffix of a variant's name, and the way that its dense part runs.
_VARIANTS = {"": "eager", "_compiled": "compiled", "_onednn": "onednn"}

_TORCH = {
    name + ending: (module, how)
    for ending, how in _VARIANTS.items()
    for name, module in _TORCH_MODULES.items()
}

PEERS = (*_TORCH, "jax_dense")
"""The names of all peers."""


def ours() -> Worker:
    """The worker of this project."""
    return Worker("ours", Path(sys.executable), f"{_WORKERS}.ours")


def peers(names: Sequence[str], directory: Path) -> list[Worker]:
    """The workers of peers, whose packages are installed into the directory if they need some.

    Raises:
        UserError: a name is unknown, or a package can't be installed.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown or not names:
        raise UserError(
            f"--peers: expected some of {', '.join(PEERS)}, got {', '.join(unknown) or 'none'}"
        )
    python = Path(sys.executable)
    if any(name != "jax_dense" for name in names):
        python = environment.ready(directory)

    def worker(name: str) -> Worker:
        if name == "jax_dense":
            return Worker(name, Path(sys.executable), f"{_WORKERS}.jax_dense")
        module, how = _TORCH[name]
        return Worker(name, python, f"{_WORKERS}.{module}", (f"--dense={how}",), _TORCH_ENVIRONMENT)

    return [worker(name) for name in names]

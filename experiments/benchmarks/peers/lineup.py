"""The contestants, by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.errors import UserError
from experiments.benchmarks.peers import environment
from experiments.benchmarks.peers.contestant import Worker
from experiments.benchmarks.peers.problem import Precision

_WORKERS = "experiments.benchmarks.peers.workers"

# Threads wait actively: if they sleep at once, a step with 128 examples takes three times as long.
_TORCH_ENVIRONMENT = {"OMP_WAIT_POLICY": "active"}

_MODULES = {"torch_plain": "torch_plain", "fbgemm": "torch_fbgemm", "torchrec": "torch_torchrec"}
# Suffix of a variant's name, and the way that its dense part runs.
_VARIANTS = {"": "eager", "_compiled": "compiled", "_onednn": "onednn"}
_TORCH = {
    name + ending: (module, how)
    for ending, how in _VARIANTS.items()
    for name, module in _MODULES.items()
}

PEERS = (*_TORCH, "jax_dense")
"""The names of all peers."""


def is_torch(name: str) -> bool:
    """Whether a peer runs in PyTorch's environment."""
    return name in _TORCH


def suitable(names: Sequence[str], precision: Precision) -> list[str]:
    """The peers that compute in this precision; prints which ones don't.

    Raises:
        UserError: none does.
    """
    if precision == "float32":
        return list(names)
    left = [name for name in names if not is_torch(name) or _TORCH[name][1] != "onednn"]
    if out := [name for name in names if name not in left]:
        text = f"{', '.join(out)}: without it, PyTorch's {precision} goes through oneDNN, too"
        if not left:
            raise UserError(f"--peers: expected others with --precision={precision}, got {text}")
        print(f"left out {text}", file=sys.stderr)
    return left


def ours() -> Worker:
    """The worker of this project."""
    return Worker("ours", Path(sys.executable), f"{_WORKERS}.ours")


def peers(names: Sequence[str], directory: Path) -> list[Worker]:
    """The workers of peers of `PEERS`; PyTorch's packages are installed into the directory.

    Raises:
        UserError: a package can't be installed.
    """
    workers = []
    for name in names:
        if not is_torch(name):
            workers.append(Worker(name, Path(sys.executable), f"{_WORKERS}.{name}"))
        else:
            module, how = _TORCH[name]
            python, flags = environment.ready(directory), (f"--dense={how}",)
            workers.append(Worker(name, python, f"{_WORKERS}.{module}", flags, _TORCH_ENVIRONMENT))
    return workers


def torch_products(directory: Path) -> Worker:
    """The worker for `products.by_torch`; the packages are installed as for `peers`."""
    python = environment.ready(directory)
    return Worker("PyTorch", python, f"{_WORKERS}.torch_products")


def torch_large_product(directory: Path, precision: Precision, side: int) -> Worker:
    """The worker for `products.large_by_torch`; the packages are installed as for `peers`.

    Args:
        directory: directory of the packages.
        precision: type of the matrices.
        side: width of the matrices.
    """
    python, flags = environment.ready(directory), (precision, str(side))
    return Worker("PyTorch", python, f"{_WORKERS}.torch_large_product", flags)

"""Which library computes the products of the dense part."""

from __future__ import annotations

import re
import subprocess

from dlrm_jax.errors import UserError
from dlrm_jax.native import layers, library
from experiments.benchmarks.peers.contestant import Worker, command
from experiments.benchmarks.peers.problem import Precision

# A line of a product, by library; oneDNN names its implementation.
_MKL = re.compile(r"^MKL_VERBOSE \w*gemm", re.IGNORECASE | re.MULTILINE)
_ONEDNN = re.compile(r"^onednn_verbose,.*\bexec,cpu,(?:matmul|inner_product),([^,]+)", re.MULTILINE)
_SECTION = re.compile(r"^(float32|bfloat16)$", re.MULTILINE)


def by_jax(precision: Precision) -> str:
    """The library of this project's MLPs, which `peers.workers.jax_dense` has, too."""
    native = precision == "bfloat16" and library.load() and layers.supports_bfloat16()
    return "native kernels" if native else "XLA"


def by_torch(worker: Worker) -> dict[str, str]:
    """The library of PyTorch's linear layers by precision, as the libraries themselves report it.

    Args:
        worker: worker of `workers.torch_products`.

    Raises:
        UserError: PyTorch fails.
    """
    return reported(_printed(worker))


def large_by_torch(worker: Worker) -> float:
    """The seconds that `workers.torch_large_product` prints.

    Raises:
        UserError: PyTorch fails.
    """
    return float(_printed(worker))


def _printed(worker: Worker) -> str:
    result = subprocess.run(command(worker), capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"PyTorch computes no product: {result.stderr.strip()}")
    return result.stdout


def reported(text: str) -> dict[str, str]:
    """The libraries by precision, from the output of `workers.torch_products`."""
    _, *parts = _SECTION.split(text)
    return {
        precision: _library(lines) for precision, lines in zip(parts[::2], parts[1::2], strict=True)
    }


def _library(lines: str) -> str:
    if found := _ONEDNN.search(lines):
        return f"oneDNN ({found[1]})"
    return "MKL" if _MKL.search(lines) else "neither MKL nor oneDNN"

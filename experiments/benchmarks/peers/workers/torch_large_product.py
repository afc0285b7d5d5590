"""Prints the seconds of PyTorch's fastest product of two square matrices.

    python -m experiments.benchmarks.peers.workers.torch_large_product bfloat16 2048

In float32 it is MKL's or oneDNN's, in bfloat16 oneDNN's.
"""

from __future__ import annotations

import os
import sys

import torch

from experiments.benchmarks.peers.workers.torch_linear import OneDnnLinear
from experiments.benchmarks.timing import fastest_seconds

if __name__ == "__main__":
    name, side = sys.argv[1:]
    dtype = getattr(torch, name)
    torch.set_num_threads(os.cpu_count() or 1)
    x = torch.ones(int(side), int(side), dtype=dtype)
    layers = [torch.nn.Linear(int(side), int(side), dtype=dtype)]
    if dtype == torch.float32:
        layers.append(OneDnnLinear(int(side), int(side)))
    with torch.inference_mode():
        print(min(fastest_seconds(lambda layer=layer: layer(x)) for layer in layers))

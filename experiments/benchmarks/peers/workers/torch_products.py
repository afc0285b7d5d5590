"""Computes a linear layer in each precision, while the libraries of products say what they do.

Prints a line for each precision before it: what follows is by MKL or oneDNN. Both are silent about
products that PyTorch computes without them.
"""

from __future__ import annotations

import torch
from torch.backends import mkl, mkldnn

_SIZE = 256

if __name__ == "__main__":
    for precision in (torch.float32, torch.bfloat16):
        print(str(precision).removeprefix("torch."), flush=True)
        x, weight = (torch.zeros(_SIZE, _SIZE, dtype=precision) for _ in range(2))
        with mkl.verbose(mkl.VERBOSE_ON), mkldnn.verbose(mkldnn.VERBOSE_ON):
            torch.nn.functional.linear(x, weight)

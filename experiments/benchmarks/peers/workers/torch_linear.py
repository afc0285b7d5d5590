"""Linear layers through oneDNN.

PyTorch's own use MKL, which isn't optimized for other makers' processors: on an AMD EPYC with
AVX-512, whole steps take up to 1.8 times as long with it. PyTorch has the operator, for inference
only and without a switch for float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias`` of matrices."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        back = _product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        return back, _product(grad.t(), x.t()), grad.sum(0)


def onednn_product(x: Tensor, kernel: Tensor) -> Tensor:
    """The product of [B, in] and [in, out], which autograd differentiates."""
    return _Linear.apply(x, kernel.t(), kernel.new_zeros(kernel.shape[1]))


class OneDnnLinear(nn.Linear):
    """`nn.Linear` for a matrix [B, in]."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as in the base class)
        """Returns [B, out]."""
        return _Linear.apply(input, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Replaces all linear layers in a module by `OneDnnLinear`."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear

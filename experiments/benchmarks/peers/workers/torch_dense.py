"""The dense part of DLRM in PyTorch, and a contestant with it and tables of any kind."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmarks.peers.problem import Bags, Problem
from experiments.benchmarks.peers.workers.protocol import serve
from experiments.benchmarks.peers.workers.torch_linear import use_onednn


class Tables:
    """Embedding tables with their own optimizer, by default one that the backward pass runs."""

    def prepare(self, bags: Sequence[Bags]) -> Any:
        """Converts the bags of a batch to the form that `lookup` takes."""
        raise NotImplementedError

    def lookup(self, prepared: Any) -> Tensor:
        """Pooled vectors [B, F, d]."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Clears the gradients of the batch before."""

    def update(self) -> None:
        """Updates from the gradients of the backward pass."""


class DenseDLRM(nn.Module):
    """Both MLPs and the interaction: dense features and pooled vectors to logits."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.bottom = _mlp(problem, "bottom")
        self.top = _mlp(problem, "top")
        vectors = len(problem.table_rows) + 1
        row, column = np.tril_indices(vectors, -1)
        self.register_buffer("pairs", torch.from_numpy(row * vectors + column))

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Logits [B]."""
        x = self.bottom(dense)
        vectors = torch.cat([x[:, None], pooled], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        z = torch.cat([x, products.index_select(1, self.pairs)], dim=1)
        return self.top(z)[:, 0]


class BFloat16(nn.Module):
    """A model that computes in bfloat16 what `torch.autocast` chooses; its logits are float32.

    Autocast is inside of what is compiled; around it, it is as fast.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, pooled: Any) -> Tensor:
        """Logits [B]."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(dense, pooled)
        return logits.float()


class DLRMLoss(nn.Module):
    """A model of dense features and pooled vectors, with its loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, pooled: Any, labels: Tensor) -> Tensor:
        """Mean binary cross-entropy."""
        logits = self.model(dense, pooled)
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def dense_optimizer(problem: Problem, model: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's own optimizer of the MLPs, in one pass over all parameters."""
    parameters = list(model.parameters())
    if problem.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=problem.learning_rate, fused=True)
    return torch.optim.Adagrad(parameters, lr=problem.learning_rate, eps=problem.eps, fused=True)


def dense_part(module: nn.Module, how: str) -> Callable[..., Any]:
    """The module in the form that runs: ``"eager"``, ``"compiled"`` or ``"onednn"``."""
    if how == "onednn":
        use_onednn(module)
    return torch.compile(module, fullgraph=True) if how == "compiled" else module


class TorchContestant:
    """Tables, and a model of their pooled vectors in one of the forms of `dense_part`."""

    def __init__(self, problem: Problem, model: nn.Module, tables: Tables, how: str):
        training = problem.mode == "train"
        self._optimizer = dense_optimizer(problem, model) if training else None
        model = BFloat16(model) if problem.precision == "bfloat16" else model
        self._dense_part = dense_part(DLRMLoss(model) if training else model, how)
        self._tables = tables
        self._batches = []
        for i in range(problem.batches):
            arrays = problem.batch(i)
            dense, labels = tensors(arrays.dense, arrays.labels)
            self._batches.append((dense, self._tables.prepare(problem.bags(i)), labels))

    def step(self, batch: int) -> Tensor:
        """See `Contestant.step`."""
        dense, bags, labels = self._batches[batch]
        if self._optimizer is None:
            with torch.no_grad():  # FBGEMM has no operator for inference mode
                return self._dense_part(dense, self._tables.lookup(bags))
        self._optimizer.zero_grad(set_to_none=True)
        self._tables.zero_grad()
        loss = self._dense_part(dense, self._tables.lookup(bags), labels)
        loss.backward()
        self._optimizer.step()
        self._tables.update()
        return loss.detach()


def main(make: Callable[[Problem], tuple[nn.Module, Tables]], *packages: str) -> None:
    """Serves a contestant of this model and tables; ``--dense`` selects the model's form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dense", choices=["eager", "compiled", "onednn"], default="eager")
    how = parser.parse_args().dense
    torch.set_num_threads(os.cpu_count() or 1)
    serve(lambda problem: TorchContestant(problem, *make(problem), how), packages)


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    """Copies of arrays, also of memory maps."""
    return [torch.from_numpy(np.array(array)) for array in arrays]


@torch.no_grad()
def set_linear(linear: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    """Gives a layer the problem's weights."""
    linear.weight.copy_(torch.from_numpy(weight))
    linear.bias.copy_(torch.from_numpy(bias))


def _mlp(problem: Problem, name: str) -> nn.Sequential:
    modules: list[nn.Module] = []
    widths = itertools.pairwise(problem.widths(name))
    for (fan_in, fan_out), arrays in zip(widths, problem.layers(name), strict=True):
        linear = nn.Linear(fan_in, fan_out)
        set_linear(linear, *arrays)
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*(modules if name == "bottom" else modules[:-1]))

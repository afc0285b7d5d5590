"""Plain PyTorch, as in the paper: an `nn.EmbeddingBag` per table, sparse gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experiments.benchmarks.peers.problem import Bags, Problem
from experiments.benchmarks.peers.workers.torch_dense import DenseDLRM, Tables, main, tensors


class RowWiseSparseAdagrad:
    """``a += mean(g²); w -= rate · g / (√a + eps)`` on the rows of a sparse gradient.

    PyTorch has no such optimizer. Duplicates are summed first.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float, eps: float):
        self._parameters = parameters
        self._learning_rate = learning_rate
        self._eps = eps
        self._sums = [torch.zeros(len(table)) for table in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """One update of every table."""
        for table, sums in zip(self._parameters, self._sums, strict=True):
            assert table.grad is not None
            gradient = table.grad.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
            sums.index_add_(0, rows, values.square().mean(dim=1))
            scale = sums[rows].sqrt_().add_(self._eps)
            table.index_add_(0, rows, values / scale[:, None], alpha=-self._learning_rate)

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for table in self._parameters:
            table.grad = None


class EmbeddingBags(Tables):
    """One `nn.EmbeddingBag` per table."""

    def __init__(self, problem: Problem):
        tables = tensors(*map(problem.table, range(len(problem.table_rows))))
        self._bags = [
            nn.EmbeddingBag(
                *table.shape, mode="sum", sparse=True, include_last_offset=True, _weight=table
            )
            for table in tables
        ]
        weights = [bag.weight for bag in self._bags]
        if problem.optimizer == "sgd":
            self._optimizer = torch.optim.SGD(weights, lr=problem.learning_rate)
        else:
            self._optimizer = RowWiseSparseAdagrad(weights, problem.learning_rate, problem.eps)

    def prepare(self, bags: Sequence[Bags]) -> list[tuple[Tensor, Tensor]]:
        """See `Tables.prepare`."""
        return [(torch.from_numpy(bag.ids), torch.from_numpy(bag.offsets)) for bag in bags]

    def lookup(self, prepared: list[tuple[Tensor, Tensor]]) -> Tensor:
        """See `Tables.lookup`."""
        return torch.stack(
            [bag(*inputs) for bag, inputs in zip(self._bags, prepared, strict=True)], dim=1
        )

    def zero_grad(self) -> None:
        """See `Tables.zero_grad`."""
        self._optimizer.zero_grad()

    def update(self) -> None:
        """See `Tables.update`."""
        self._optimizer.step()


if __name__ == "__main__":
    main(lambda x: (DenseDLRM(x), EmbeddingBags(x)), "torch", "numpy")

"""FBGEMM's table-batched operator, which updates tables in its backward pass, called directly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from experiments.benchmarks.peers.problem import Bags, Problem
from experiments.benchmarks.peers.workers.torch_dense import DenseDLRM, Tables, main, tensors

_OPTIMIZERS = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}


class TableBatched(Tables):
    """All tables in one operator."""

    def __init__(self, problem: Problem):
        self._dim = problem.embedding_dim
        self._operator = SplitTableBatchedEmbeddingBagsCodegen(
            [
                (rows, self._dim, EmbeddingLocation.HOST, ComputeDevice.CPU)
                for rows in problem.table_rows
            ],
            optimizer=_OPTIMIZERS[problem.optimizer],
            learning_rate=problem.learning_rate,
            eps=problem.eps,
            stochastic_rounding=False,
            pooling_mode=PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.NONE,
            device=torch.device("cpu"),
        )
        for i, weights in enumerate(self._operator.split_embedding_weights()):
            weights.copy_(*tensors(problem.table(i)))

    def prepare(self, bags: Sequence[Bags]) -> tuple[Tensor, Tensor]:
        """See `Tables.prepare`."""
        starts = np.cumsum([0, *(len(bag.ids) for bag in bags)])
        offsets = [bag.offsets[:-1] + start for bag, start in zip(bags, starts, strict=False)]
        ids = np.concatenate([bag.ids for bag in bags])
        return torch.from_numpy(ids), torch.from_numpy(np.concatenate([*offsets, starts[-1:]]))

    def lookup(self, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """See `Tables.lookup`."""
        pooled = self._operator(*prepared)
        return pooled.view(len(pooled), -1, self._dim)


if __name__ == "__main__":
    main(lambda x: (DenseDLRM(x), TableBatched(x)), "torch", "fbgemm-gpu-cpu", "numpy")

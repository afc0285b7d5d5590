"""TorchRec's own DLRM, with its tables as a fused collection on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from experiments.benchmarks.peers.problem import Bags, Problem
from experiments.benchmarks.peers.workers.torch_dense import Tables, main, set_linear, tensors


class DensePart(nn.Module):
    """The part of TorchRec's DLRM behind the tables, so that it can be compiled by itself."""

    def __init__(self, model: DLRM):
        super().__init__()
        self.dense_arch, self.inter_arch = model.dense_arch, model.inter_arch
        self.over_arch = model.over_arch

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Logits [B]."""
        x = self.dense_arch(dense)
        return self.over_arch(self.inter_arch(dense_features=x, sparse_features=pooled))[:, 0]


class SparsePart(Tables):
    """The tables of TorchRec's DLRM."""

    def __init__(self, model: DLRM, keys: Sequence[str]):
        self._sparse_arch, self._keys = model.sparse_arch, list(keys)

    def prepare(self, bags: Sequence[Bags]) -> KeyedJaggedTensor:
        """See `Tables.prepare`."""
        lengths = np.concatenate([np.diff(bag.offsets) for bag in bags])
        keyed = KeyedJaggedTensor(
            self._keys,
            torch.from_numpy(np.concatenate([bag.ids for bag in bags])),
            lengths=torch.from_numpy(lengths),
        )
        keyed.offsets()  # computed once, here
        return keyed

    def lookup(self, prepared: KeyedJaggedTensor) -> Tensor:
        """See `Tables.lookup`."""
        return self._sparse_arch(prepared)


def make(problem: Problem) -> tuple[DensePart, SparsePart]:
    """Both parts of the model, with the problem's weights."""
    keys = [f"C{i + 1}" for i in range(len(problem.table_rows))]
    mlps = list(problem.bottom_mlp), list(problem.top_mlp)
    model = DLRM(_tables(problem, keys), problem.dense_features, *mlps)
    _set_weights(model, problem)
    return DensePart(model), SparsePart(model, keys)


def _tables(problem: Problem, keys: Sequence[str]) -> FusedEmbeddingBagCollection:
    options = {"lr": problem.learning_rate}
    if problem.optimizer == "sgd":
        kind = torch.optim.SGD
    else:
        kind, options = RowWiseAdagrad, options | {"eps": problem.eps}
    tables = FusedEmbeddingBagCollection(
        [
            EmbeddingBagConfig(
                name=key,
                embedding_dim=problem.embedding_dim,
                num_embeddings=rows,
                feature_names=[key],
            )
            for key, rows in zip(keys, problem.table_rows, strict=True)
        ],
        optimizer_type=kind,
        optimizer_kwargs=options,
        device=torch.device("cpu"),
    )
    with torch.no_grad():
        for i, key in enumerate(keys):
            tables.embedding_bags[key].weight.copy_(*tensors(problem.table(i)))
    return tables


def _set_weights(model: DLRM, problem: Problem) -> None:
    """Copies the problem's weights; TorchRec orders the products as the upper triangle."""
    vectors = len(problem.table_rows) + 1
    place = np.zeros((vectors, vectors), int)
    row, column = np.tril_indices(vectors, -1)
    place[column, row] = np.arange(len(row))
    ours = place[np.triu_indices(vectors, 1)]
    d = problem.embedding_dim
    order = np.concatenate([np.arange(d), d + ours])
    for name, module in (("bottom", model.dense_arch), ("top", model.over_arch)):
        linears = [x for x in module.modules() if isinstance(x, nn.Linear)]
        for i, (linear, arrays) in enumerate(zip(linears, problem.layers(name), strict=True)):
            weight, bias = arrays
            if name == "top" and i == 0:
                weight = weight[:, order]
            set_linear(linear, weight, bias)


if __name__ == "__main__":
    main(make, "torch", "torchrec", "fbgemm-gpu-cpu", "numpy")

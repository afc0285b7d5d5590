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
from experiments.benchmarks.peers.workers.torch_dense import (
    DLRMLoss,
    dense_optimizer,
    dense_part,
    main,
)


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


class TorchRec:
    """The model and its batches; ``how`` is the form of the dense part, see `dense_part`."""

    def __init__(self, problem: Problem, how: str):
        self._training = problem.mode == "train"
        self._keys = [f"C{i + 1}" for i in range(len(problem.table_rows))]
        model = DLRM(
            _tables(problem, self._keys),
            problem.dense_features,
            list(problem.bottom_mlp),
            list(problem.top_mlp),
        )
        _set_weights(model, problem)
        self._sparse_part = model.sparse_arch
        model = DensePart(model)
        self._optimizer = dense_optimizer(problem, model) if self._training else None
        whole = DLRMLoss(model) if self._training else model
        self._dense_part = dense_part(whole, how)
        self._batches = []
        for i in range(problem.batches):
            arrays = problem.batch(i)
            dense, labels = (torch.from_numpy(np.array(x)) for x in (arrays.dense, arrays.labels))
            self._batches.append((dense, self._keyed(problem.bags(i)), labels))

    def step(self, batch: int) -> Tensor:
        """See `Contestant.step`."""
        dense, bags, labels = self._batches[batch]
        if self._optimizer is None:
            with torch.no_grad():  # FBGEMM has no operator for inference mode
                return self._dense_part(dense, self._sparse_part(bags))
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._dense_part(dense, self._sparse_part(bags), labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _keyed(self, bags: Sequence[Bags]) -> KeyedJaggedTensor:
        lengths = np.concatenate([np.diff(bag.offsets) for bag in bags])
        keyed = KeyedJaggedTensor(
            self._keys,
            torch.from_numpy(np.concatenate([bag.ids for bag in bags])),
            lengths=torch.from_numpy(lengths),
        )
        keyed.offsets()  # computed once, here
        return keyed


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
            tables.embedding_bags[key].weight.copy_(torch.from_numpy(problem.table(i).copy()))
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
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(weight))
                linear.bias.copy_(torch.from_numpy(bias))


if __name__ == "__main__":
    main(TorchRec, ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy"))

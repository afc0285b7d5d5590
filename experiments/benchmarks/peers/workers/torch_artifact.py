"""An artifact of DLRM, loaded into FBGEMM's operator for inference and PyTorch's dense layers.

Tables are in the operator's memory, and indices aren't checked. ``--part`` is the form of the
dense part: ``eager``, ``compiled`` (`torch.compile`, once for each batch size), ``onednn``, or
``fastest``, which is the fastest of them for each batch size. Batch sizes other than powers of two
are never compiled. Layers in int8 have engines in place of forms, the fastest of which counts.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmarks.peers.workers.predicting import serve
from experiments.benchmarks.peers.workers.torch_dense import dense_part
from experiments.benchmarks.peers.workers.torch_layers import ENGINES, ArtifactLayers
from experiments.benchmarks.peers.workers.torch_operator import StoredRows, stored_operator
from experiments.benchmarks.timing import fastest_seconds

_PARTS = ("eager", "compiled", "onednn")
_COMPILED = {2**i for i in range(14)}  # batch sizes; compilation takes seconds for each


class Dense(nn.Module):
    """Dense features and pooled vectors to probabilities."""

    def __init__(self, layers: ArtifactLayers, tables: int, shift: float):
        super().__init__()
        self.bottom = layers.mlp("bottom")
        self.top = layers.mlp("top")
        row, column = np.tril_indices(tables + 1, -1)
        self.register_buffer("pairs", torch.from_numpy(row * (tables + 1) + column))
        self._shift = shift

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Probabilities [B]."""
        x = self.bottom(dense)
        vectors = torch.cat([x[:, None], pooled], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        z = torch.cat([x, products.index_select(1, self.pairs)], dim=1)
        return torch.sigmoid(self.top(z)[:, 0] + self._shift)


class Model:
    """The operator with its tables, and the dense part."""

    def __init__(self, artifact: Path, part: str):
        torch.set_num_threads(os.cpu_count() or 1)
        torch._dynamo.config.recompile_limit = 64  # one program for each batch size
        manifest = json.loads((artifact / "manifest.json").read_text())
        tables = manifest["tables"]
        self._operator = stored_operator(
            [StoredRows(artifact / x["file"], x["rows"], x["dim"], x["row_format"]) for x in tables]
        )
        self._part, self._dense_features = part, manifest["dense_features"]
        layers = ArtifactLayers(artifact)
        self._shape = (-1, len(tables), tables[0]["dim"])

        def made(how: str) -> Callable[..., Tensor]:
            if how in ENGINES:
                torch.backends.quantized.engine = how
            module = Dense(layers, len(tables), manifest["shift"]).eval()
            if how == "compiled":
                return torch.compile(module, fullgraph=True, dynamic=False)
            return dense_part(module, how)

        forms = _PARTS if part == "fastest" else ("eager", part)
        if layers.precision == "int8":
            forms = ENGINES
        elif layers.precision == "bfloat16":
            forms = [x for x in forms if x != "onednn"]
        self._parts = {x: made(x) for x in forms}
        self.chosen: dict[int, str] = {}

    @functools.cache  # noqa: B019 (there is one model)
    def _offsets(self, size: int) -> Tensor:
        return torch.arange(size * self._shape[1] + 1, dtype=torch.int32)

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Chooses and compiles the dense part for some batch sizes."""
        for size in sizes:
            dense = np.zeros((size, self._dense_features), np.float32)
            self(dense, np.zeros((size, self._shape[1]), np.int32))

    def _choose(self, size: int, *arguments: Any) -> Callable[..., Tensor]:
        """The fastest form of the dense part for a batch size."""
        if size not in self.chosen:
            parts = {
                name: functools.partial(part, *arguments)
                for name, part in self._parts.items()
                if name != "compiled" or size in _COMPILED
            }
            times = {name: fastest_seconds(part, 9) for name, part in parts.items()}
            if self._part in times:
                times = {self._part: 0.0}
            self.chosen[size] = min(times, key=times.__getitem__)
        return self._parts[self.chosen[size]]

    @torch.inference_mode()
    def __call__(self, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Probabilities [B]."""
        size = len(ids)
        indices = torch.from_numpy(ids).t().reshape(-1)
        pooled = self._operator(indices, self._offsets(size)).view(self._shape)
        arguments = torch.from_numpy(dense), pooled
        return self._choose(size, *arguments)(*arguments).numpy()


if __name__ == "__main__":
    serve(Model, ("torch", "fbgemm-gpu-cpu", "numpy"))

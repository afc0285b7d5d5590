"""FBGEMM's operator for inference on a CPU, on the tables of `benchmarks.quantized_lookup`.

Requests are ``{"do": "build", "tables": [path, …], "shapes": [[rows, bytes], …], "format": …,
"dim": …, "ids": path}``, then ``{"do": "check", "size": B, "output": path}``, which writes the
vectors of the first batch, and any number of ``{"do": "run", "size": B, "batches": N, "seconds": …,
"processor_time": …}``. The operator has its tables in memory, indices and offsets are made
beforehand, and it doesn't check the indices.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.peers.workers.protocol import end_with_parent, only_for_answers
from experiments.benchmarks.peers.workers.torch_operator import StoredRows, stored_operator
from experiments.benchmarks.timing import calls_per_second


class Operator:
    """The operator with its tables, and the ids of all samples."""

    def __init__(self, request: Mapping[str, Any]):
        self._ids = np.load(request["ids"], mmap_mode="r")
        tables = zip(request["tables"], request["shapes"], strict=True)
        self._operator = stored_operator(
            [
                StoredRows(Path(path), rows, request["dim"], request["format"])
                for path, (rows, _) in tables
            ]
        )

    def batches(self, size: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Indices of each table after the other, and where each bag begins."""
        offsets = torch.arange(size * self._ids.shape[1] + 1, dtype=torch.int32)
        ids = (self._ids[i * size : (i + 1) * size] for i in range(count))
        return [(torch.from_numpy(x.T.reshape(-1).astype(np.int32)), offsets) for x in ids]

    def __call__(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The vectors, [B, tables x dim]."""
        return self._operator(*batch)


def _serve() -> None:
    end_with_parent()
    answers = only_for_answers()
    operator: Operator
    prepared = None
    with torch.inference_mode():
        for line in sys.stdin:
            request = json.loads(line)
            answer: dict[str, Any] = {}
            if request["do"] == "build":
                prepared = None
                operator = Operator(request)
                packages = ("torch", "fbgemm-gpu-cpu")
                answer = {name: importlib.metadata.version(name) for name in packages}
            elif request["do"] == "check":
                found = operator(operator.batches(request["size"], 1)[0])
                np.save(request["output"], found.numpy())
            else:
                key = (request["size"], request["batches"])
                if prepared is None or prepared[0] != key:
                    prepared = key, operator.batches(*key)
                calls = [functools.partial(operator, x) for x in prepared[1]]
                rate = calls_per_second(calls, request["seconds"], request["processor_time"])
                answer = {"calls_per_second": rate}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()

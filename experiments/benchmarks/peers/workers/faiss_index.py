"""Faiss's indexes of the items of `benchmarks.retrieval_index`.

Requests are ``{"do": "build", "vectors": path, "queries": path, "passing": path, "cells": C,
"threads": T, "names": […]}``, then ``{"do": "search", "name": …, "probes": P, "k": K,
"is_filtered": …, "output": path}``, which writes the items of all queries, and any number of
``{"do": "run", …, "size": B, "seconds": …, "processor_time": …}`` with the same name, probes, k and
filter. The bitmap of the filter is made beforehand.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import faiss  # pyright: ignore[reportMissingImports]
import numpy as np

from experiments.benchmarks.peers.workers.protocol import end_with_parent, only_for_answers
from experiments.benchmarks.timing import calls_per_second


class Indexes:
    """The indexes by name, and what they are asked."""

    def __init__(self, request: Mapping[str, Any]):
        faiss.omp_set_num_threads(request["threads"])
        vectors = np.load(request["vectors"])
        self._queries = np.load(request["queries"])
        bitmap = np.packbits(np.load(request["passing"]), bitorder="little")
        self._bitmap = bitmap  # the selector refers to it
        self._selector = faiss.IDSelectorBitmap(bitmap)
        dim, cells, product = vectors.shape[1], request["cells"], faiss.METRIC_INNER_PRODUCT
        made = {
            "IndexFlat": lambda: faiss.IndexFlatIP(dim),
            "IVFFlat": lambda: faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, product),
            "IVF SQ8": lambda: faiss.IndexIVFScalarQuantizer(
                faiss.IndexFlatIP(dim), dim, cells, faiss.ScalarQuantizer.QT_8bit, product
            ),
        }
        self._made: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        for name in request["names"]:
            begun = time.perf_counter()
            index = made[name]()
            index.train(vectors)
            index.add(vectors)
            self._made[name] = index
            self.seconds[name] = time.perf_counter() - begun

    def find(self, request: Mapping[str, Any], begin: int, end: int) -> np.ndarray:
        """The items of queries [begin, end)."""
        selector = self._selector if request["is_filtered"] else None
        if request["name"] == "IndexFlat":
            parameters = faiss.SearchParameters(sel=selector)
        else:
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=request["probes"])
        index = self._made[request["name"]]
        return index.search(self._queries[begin:end], request["k"], params=parameters)[1]

    def calls_per_second(self, request: Mapping[str, Any]) -> float:
        """See `timing.calls_per_second`."""
        size = request["size"]
        calls = [
            functools.partial(self.find, request, begin, begin + size)
            for begin in range(0, len(self._queries) - size + 1, size)
        ]
        return calls_per_second(calls, request["seconds"], request["processor_time"])

    def all(self, request: Mapping[str, Any]) -> np.ndarray:
        """The items of all queries."""
        return self.find(request, 0, len(self._queries))


def _serve() -> None:
    end_with_parent()
    answers = only_for_answers()
    indexes: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "build":
            indexes = Indexes(request)
            version = importlib.metadata.version("faiss-cpu")
            answer = {"version": version, "seconds": indexes.seconds}
        elif request["do"] == "search":
            np.save(request["output"], indexes.all(request))
        else:
            answer = {"calls_per_second": indexes.calls_per_second(request)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()

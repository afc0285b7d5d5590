"""One loaded version of a model of rows, and the way in which it answers requests together."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.data.arrays import Examples
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.followed_deltas import FollowedDeltas
from dlrm_jax.serving.served_version import Observer, Probabilities, ServedVersion, tensor_note

_KINDS = {pl.Float32: "FP32", pl.Float64: "FP64", pl.Boolean: "BOOL"}
"""Types of the categorical columns that take no text; integers may come as text, too."""

DENSE, IDS = "dense", "ids"
"""Inputs of a model without vocabularies, which others take as well."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a request.

    Attributes:
        examples: examples with ids.
        shared: features whose ids are the same in all of them, which are looked up once.
    """

    examples: Examples
    shared: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.examples)


class ServedModel(ServedVersion[Rows]):
    """A model of rows that answers requests in batches.

    Args:
        version: name of the version.
        predictor: model.
        most_rows: most rows of a batch.
        queued_rows: most rows that wait.
        observer: functions that are told of its work.
        deltas: deltas that change it while it is served; None for none.
    """

    def __init__(
        self,
        version: str,
        predictor: Predictor,
        most_rows: int,
        queued_rows: int,
        observer: Observer,
        deltas: FollowedDeltas | None = None,
    ):
        self.predictor, self._deltas = predictor, deltas
        super().__init__(version, most_rows, queued_rows, observer)

    @functools.cached_property
    def takes_raw_rows(self) -> bool:
        """Whether it has what maps raw values to ids."""
        return self.predictor.takes_raw_rows

    @property
    def labels(self) -> Sequence[str]:
        """The names of the labels; none for one without a name."""
        return self.predictor.labels

    def inputs(self) -> list[dict[str, Any]]:
        """What the Open Inference Protocol says about the inputs."""
        inputs = self.predictor.scorer.inputs
        if not self.takes_raw_rows:
            width = inputs.dense_features
            dense = [tensor_note(DENSE, "FP32", -1, width)] if width else []
            return [*dense, tensor_note(IDS, "INT32", -1, sum(inputs.bag_lengths))]
        encoder = self.predictor.encoder
        schema = encoder.options.schema
        bags = schema.bag_lengths
        kinds = {
            x: "BYTES" if x in schema.bins else _KINDS.get(y, "BYTES")
            for x, y in encoder.types.items()
        }
        return [
            *(tensor_note(x, "FP32", -1) for x in schema.dense),
            *(
                tensor_note(x, kinds[x], -1, *([-1] if x in bags else []))
                for x in schema.categorical
            ),
        ]

    def warm_up(self) -> None:
        """Compiles a program for each batch size, and reads the vocabularies.

        Where native kernels predict, there is nothing to compile.
        """
        if self.takes_raw_rows:
            _ = self.predictor.row_encoder
        # XLA compiles one program in one thread; the largest take longest.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(self._predict_zeros, reversed(self.predictor.batch_sizes or (1,))):
                pass

    def _predict_zeros(self, size: int) -> None:
        inputs = self.predictor.scorer.inputs
        dtype = np.int64 if inputs.has_raw_ids else np.int32
        ids = np.zeros((size, sum(inputs.bag_lengths)), dtype)
        dense = np.zeros((size, inputs.dense_features), np.float32)
        self.predictor.predict_examples(examples_of(dense, ids))

    def follow(self) -> None:
        """Applies the deltas that have come; requests are answered meanwhile."""
        if self._deltas:
            self._deltas.look()

    def _answer(self, requests: Sequence[Rows]) -> list[Probabilities | Exception]:
        alone = [i for i, rows in enumerate(requests) if rows.shared]
        found = dict(zip(alone, (self._scored([requests[i]])[0] for i in alone), strict=True))
        joined = [i for i in range(len(requests)) if i not in found]
        found |= zip(joined, self._scored([requests[i] for i in joined]), strict=True)
        return [found[i] for i in range(len(requests))]

    def _scored(self, requests: Sequence[Rows]) -> Sequence[Probabilities | Exception]:
        if not requests:
            return []
        try:
            joined = _joined([x.examples for x in requests])
            probabilities = self.predictor.predict_examples(joined, requests[0].shared)
        except Exception as error:  # an id out of range, or a prediction that isn't finite
            if len(requests) == 1:
                return [error]
            return [self._scored([each])[0] for each in requests]
        self._scores.append((joined, probabilities))
        ends = np.cumsum([len(x) for x in requests])
        return np.split(probabilities, ends[:-1])


def examples_of(dense: np.ndarray, ids: np.ndarray) -> Examples:
    """Examples without labels."""
    return Examples(dense, ids, np.zeros(len(dense), np.float32))


def _joined(examples: Sequence[Examples]) -> Examples:
    if len(examples) == 1:
        return examples[0]
    dense = np.concatenate([x.dense for x in examples])
    return examples_of(dense, np.concatenate([np.asarray(x.ids) for x in examples]))

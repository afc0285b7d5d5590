"""One loaded version of a model, and the queue of the requests that it answers."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float64

from dlrm_jax.data.arrays import Examples
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.batcher import Answer, Batcher, BatchTimes
from dlrm_jax.serving.followed_deltas import FollowedDeltas

_log = logging.getLogger(__name__)

Probabilities = Float64[np.ndarray, "N *_"]

_Scores = list[tuple[Examples, Probabilities]]

_REST = 0.001  # seconds; Python's threads take turns, and counting takes half a millisecond


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


@dataclasses.dataclass(frozen=True)
class Observer:
    """What is told of the work of a model.

    Attributes:
        batch: called after each batch with what it took.
        scored: called after each batch with its examples and their probabilities.
    """

    batch: Callable[[BatchTimes], None] = lambda _: None
    scored: Callable[[Examples, Probabilities], None] = lambda *_: None


class ServedModel:
    """A model that answers requests in batches.

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
        self.version = version
        self.predictor = predictor
        self._most_rows = most_rows
        self._observer = observer
        self._deltas = deltas
        self._scores: _Scores = []  # of the batch
        self._finished: collections.deque[tuple[BatchTimes, _Scores]] = collections.deque()
        self._observing = threading.Lock()
        self._batcher: Batcher[Rows, Probabilities] = Batcher(
            self._answer, most_rows, queued_rows, self._finish
        )

    @functools.cached_property
    def takes_raw_rows(self) -> bool:
        """Whether it has what maps raw values to ids."""
        return self.predictor.takes_raw_rows

    @property
    def waiting_rows(self) -> int:
        """The number of rows that wait."""
        return self._batcher.waiting_rows

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

    def submit(self, rows: Rows, timeout: float) -> Answer[Probabilities]:
        """Queues a request; see `Batcher.submit`.

        The future's exception is a `UserError` if an id is out of range.
        """
        return self._batcher.submit(rows, len(rows), timeout)

    def close(self) -> None:
        """Answers what waits, and takes no more."""
        self._batcher.close()

    def _answer(self, requests: Sequence[Rows]) -> list[Probabilities | Exception]:
        alone = [i for i, rows in enumerate(requests) if rows.shared]
        found = dict(zip(alone, (self._scored([requests[i]])[0] for i in alone), strict=True))
        joined = [i for i in range(len(requests)) if i not in found]
        found |= zip(joined, self._scored([requests[i] for i in joined]), strict=True)
        return [found[i] for i in range(len(requests))]

    def observe(self) -> None:
        """Tells the observer of the batches that it hasn't been told of."""
        with self._observing:
            while self._finished:
                times, scores = self._finished.popleft()
                try:
                    self._observer.batch(times)
                    for examples, probabilities in scores:
                        self._observer.scored(examples, probabilities)
                except Exception:  # it mustn't end the thread
                    _log.exception("version %s: what was answered isn't counted", self.version)

    def _finish(self, times: BatchTimes) -> None:
        """Observes a batch, once the event loop has had the time to send its answers."""
        self._finished.append((times, self._scores))
        self._scores = []
        self._batcher.rest(_REST)
        self.observe()

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

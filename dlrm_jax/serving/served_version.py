"""One loaded version of a model, whatever its requests are, and the queue of those."""

from __future__ import annotations

import abc
import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence, Sized
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float64

from dlrm_jax.inference.probabilities import probability_columns
from dlrm_jax.serving.batcher import Answer, Batcher, BatchTimes

_log = logging.getLogger(__name__)

Payload = TypeVar("Payload", bound=Sized)
"""A request as the model takes it. Its length is the number of its rows, or candidates."""

Probabilities = Float64[np.ndarray, "N *_"]

_REST = 0.001  # seconds; Python's threads take turns, and counting takes half a millisecond


@dataclasses.dataclass(frozen=True)
class Observer:
    """What is told of the work of a model.

    Attributes:
        batch: called after each batch with what it took.
        scored: called after each batch with what was scored and its probabilities.
    """

    batch: Callable[[BatchTimes], None] = lambda _: None
    scored: Callable[[Any, Probabilities], None] = lambda *_: None


class ServedVersion(abc.ABC, Generic[Payload]):
    """A model that answers requests in batches.

    Args:
        version: name of the version.
        most_rows: most rows of a batch.
        queued_rows: most rows that wait.
        observer: functions that are told of its work.
    """

    def __init__(self, version: str, most_rows: int, queued_rows: int, observer: Observer):
        self.version = version
        self._observer = observer
        self._scores: list[tuple[Any, Probabilities]] = []  # of the batch
        self._finished: collections.deque[tuple[BatchTimes, list[tuple[Any, Probabilities]]]] = (
            collections.deque()
        )
        self._observing = threading.Lock()
        self._batcher: Batcher[Payload, Any] = Batcher(
            self._answer, most_rows, queued_rows, self._finish
        )

    @property
    @abc.abstractmethod
    def labels(self) -> Sequence[str]:
        """The names of the labels; none for one without a name."""

    @abc.abstractmethod
    def inputs(self) -> list[dict[str, Any]]:
        """What the Open Inference Protocol says about the inputs."""

    def outputs(self) -> list[dict[str, Any]]:
        """What the Open Inference Protocol says about the outputs."""
        return [tensor_note(x, "FP64", -1) for x in probability_columns(self.labels)]

    @abc.abstractmethod
    def warm_up(self) -> None:
        """Compiles and reads what requests would wait for."""

    @abc.abstractmethod
    def _answer(self, requests: Sequence[Payload]) -> Sequence[Any]:
        """The answer to each request, or why it has none; adds probabilities to `_scores`.

        Answers are `Probabilities`, unless the kind of models gives something else.
        """

    @property
    def waiting_rows(self) -> int:
        """The number of rows that wait."""
        return self._batcher.waiting_rows

    def follow(self) -> None:
        """Applies changes that have come; requests are answered meanwhile."""

    def submit(self, request: Payload, timeout: float) -> Answer[Any]:
        """Queues a request; see `Batcher.submit`.

        The future's exception is a `UserError` if the model can't answer it.
        """
        return self._batcher.submit(request, len(request), timeout)

    def close(self) -> None:
        """Answers what waits, and takes no more."""
        self._batcher.close()

    def observe(self) -> None:
        """Tells the observer of the batches that it hasn't been told of."""
        with self._observing:
            while self._finished:
                times, scores = self._finished.popleft()
                try:
                    self._observer.batch(times)
                    for scored, probabilities in scores:
                        self._observer.scored(scored, probabilities)
                except Exception:  # it mustn't end the thread
                    _log.exception("version %s: what was answered isn't counted", self.version)

    def _finish(self, times: BatchTimes) -> None:
        """Observes a batch, once the event loop has had the time to send its answers."""
        self._finished.append((times, self._scores))
        self._scores = []
        self._batcher.rest(_REST)
        self.observe()


def tensor_note(name: str, kind: str, *shape: int) -> dict[str, Any]:
    """What the Open Inference Protocol says about a tensor."""
    return {"name": name, "datatype": kind, "shape": list(shape)}

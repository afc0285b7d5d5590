"""Predictions of all examples of a split, and their metrics."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Float

from dlrm_jax.data.arrays import Split
from dlrm_jax.data.batches import evaluation_batches
from dlrm_jax.data.prefetch import Prefetch
from dlrm_jax.signals import check
from dlrm_jax.training.host_memory import feed_of
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.measures import Measures
from dlrm_jax.training.step import Predict

Measure = Callable[[np.ndarray, Split], dict[str, float | int]]

_USUAL = Measures()


def rows_as_they_are(ids: np.ndarray) -> np.ndarray:
    """The ids themselves, where they are rows of the tables."""
    return ids


_ANY_ROWS = 1 << 16


def predictions(
    learner: Learner,
    predict: Predict,
    state: TrainState,
    split: Split,
    batch_size: int,
    as_ids: Callable[[np.ndarray], np.ndarray] = rows_as_they_are,
) -> Iterator[Float[np.ndarray, "B *_"]]:
    """Yields the logits of all examples, in order, a batch at a time.

    They are read after later batches have started, so that devices don't wait for the host.
    ``as_ids`` gives the ids that a model reads, see `evaluate`.
    """
    left = len(split)
    batch_size = limited(batch_size, left, learner.mesh.size)
    own = evaluation_batches(split, batch_size, jax.process_index(), jax.process_count())
    own = (batch._replace(ids=as_ids(batch.ids)) for batch in own)
    feed = feed_of(learner, writes_back=False)
    if feed:
        own = (batch._replace(ids=feed.prepare(batch.ids)) for batch in own)
        state = feed.copied(state)

    def outputs(state: TrainState) -> Iterator[jax.Array]:
        for batch in batches:
            if feed:
                state = feed.begin(state)
            yield predict(state, batch)

    with Prefetch(own, learner.put_evaluation) as batches:
        for logits in read_behind(outputs(state), learner.backend.programs_ahead):
            check()
            yield logits[:left]  # the last batch is filled up
            left -= len(logits)


def limited(batch_size: int, rows: int, devices: int) -> int:
    """The number of examples predicted at a time: not many more than there are.

    The last batch is filled up, so a batch far larger than the data would take memory for nothing.
    Up to `_ANY_ROWS`, it stays as it is: then one compiled program serves all numbers of rows.

    Args:
        batch_size: greatest number, which the devices divide.
        rows: number of examples.
        devices: number of devices.
    """
    enough = max(_ANY_ROWS, 1 << max(rows - 1, 0).bit_length())
    return min(batch_size, -(-enough // devices) * devices)


def read_behind(outputs: Iterable[jax.Array], ahead: int) -> Iterator[np.ndarray]:
    """Yields each output as NumPy array, after ``ahead`` later ones have been started.

    All devices have ended by then, not only the one that is read: see `processes._exchanged`.
    """
    started: collections.deque[jax.Array] = collections.deque()
    for output in outputs:
        started.append(output)
        if len(started) > ahead:
            yield np.asarray(jax.block_until_ready(started.popleft()))
    yield from map(np.asarray, jax.block_until_ready([*started]))


def evaluate(
    learner: Learner,
    predict: Predict,
    state: TrainState,
    split: Split,
    batch_size: int,
    measures: Measure = _USUAL,
    as_ids: Callable[[np.ndarray], np.ndarray] = rows_as_they_are,
) -> dict[str, float | int]:
    """Metrics over all examples, whatever the batch size and the mesh.

    Args:
        learner: learner of the state.
        predict: result of `make_predict`.
        state: state to evaluate.
        split: examples.
        batch_size: most examples predicted at a time.
        measures: function of all logits and the examples that gives the metrics.
        as_ids: function of ids that gives those which the model reads in their place, such as
            `EarlierIds`.
    """
    logits = list(predictions(learner, predict, state, split, batch_size, as_ids))
    return measures(np.concatenate(logits), split)

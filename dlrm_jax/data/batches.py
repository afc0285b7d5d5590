"""Batches of a fixed size: shuffled for training, in order and padded for evaluation."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dlrm_jax.data.arrays import ABSENT, Examples
from dlrm_jax.errors import UserError


class Batch(NamedTuple):
    """B examples, as NumPy arrays or, once placed on devices, JAX ones.

    Every batch of a run has the same shapes, so that a step is compiled once.

    Attributes:
        dense: [B, D] float32; features that enter the bottom MLP.
        ids: [B, C] int32; embedding rows, `ABSENT` where a bag isn't full.
        labels: [B] float32; 0 or 1.
        weights: [B] float32; 1 for an example, 0 for padding.
        id_weights: [B, C] float32; one per id, or None where all are 1.
    """

    dense: Any
    ids: Any
    labels: Any
    weights: Any
    id_weights: Any = None


def steps_per_epoch(examples: Examples, batch_size: int) -> int:
    """The number of full batches in `examples`.

    An epoch leaves out the remainder, another one each time as the examples are shuffled.

    Raises:
        UserError: If there isn't even one full batch.
    """
    _check_batch_size(batch_size)
    if len(examples) < batch_size:
        raise UserError(
            f"a batch of {batch_size} needs at least as many training examples, got "
            f"{len(examples)}; make the batch smaller."
        )
    return len(examples) // batch_size


class TrainBatches:
    """The endless sequence of training batches, by the number of the step.

    `batches[step]` depends on the examples, the seed and the step only, so a run that resumes at
    any step sees what it would have seen. Each epoch is a new permutation; the one in use is kept.

    Args:
        examples: The training split.
        batch_size: Examples per batch, B.
        seed: Selects the permutations, 0 or more.

    Raises:
        UserError: If there are fewer examples than `batch_size`, or an argument is out of range.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int):
        if seed < 0:
            raise UserError(f"the seed of the shuffle must be 0 or more, got {seed}.")
        self.steps_per_epoch = steps_per_epoch(examples, batch_size)
        self.batch_size = batch_size
        self.seed = seed
        # Plain views: gathering from np.memmap objects costs Python calls for every result.
        self._dense = np.asarray(examples.dense)
        self._ids = np.asarray(examples.ids)
        self._labels = np.asarray(examples.labels)
        self._weights = np.ones(batch_size, np.float32)
        self._weights.flags.writeable = False
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __getitem__(self, step: int) -> Batch:
        """Returns the batch of global step `step`, counted from 0."""
        if step < 0:
            raise IndexError(f"steps are counted from 0, got {step}")
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = self._permutation(epoch)
            self._epoch = epoch
        rows = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        return Batch(
            dense=self._dense.take(rows, axis=0),
            ids=self._ids.take(rows, axis=0),
            labels=self._labels.take(rows),
            weights=self._weights,
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        examples = len(self._labels)
        # Half the memory where it is enough: full Criteo data has 40 million training examples.
        dtype = np.int32 if examples <= np.iinfo(np.int32).max else np.int64
        return np.random.default_rng([self.seed, epoch]).permutation(
            np.arange(examples, dtype=dtype)
        )


def evaluation_batches(examples: Examples, batch_size: int) -> Iterator[Batch]:
    """Yields the examples in order, each exactly once with weight 1.

    The last batch is filled up with examples of weight 0, no ids and zeros.

    Raises:
        UserError: If `batch_size` is less than 1.
    """
    _check_batch_size(batch_size)
    return _consecutive(examples, batch_size)


def _consecutive(examples: Examples, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(examples), batch_size):
        rows = slice(start, min(start + batch_size, len(examples)))
        padding = batch_size - (rows.stop - start)
        yield Batch(
            dense=np.pad(examples.dense[rows], ((0, padding), (0, 0))),
            ids=np.pad(examples.ids[rows], ((0, padding), (0, 0)), constant_values=ABSENT),
            labels=np.pad(examples.labels[rows], (0, padding)),
            weights=np.pad(np.ones(rows.stop - start, np.float32), (0, padding)),
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, got {batch_size}.")

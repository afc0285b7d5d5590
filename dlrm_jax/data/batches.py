"""Batches of a fixed size: shuffled for training, in order and padded for evaluation."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from dlrm_jax.data.arrays import ABSENT, Split
from dlrm_jax.data.order import ShuffledOrder
from dlrm_jax.errors import UserError


class Batch(NamedTuple):
    """B examples, as NumPy arrays or, once placed on devices, JAX ones.

    Every batch of a run has the same shapes, so that a step is compiled once.

    Attributes:
        dense: [B, D] float32; features that enter the bottom MLP.
        ids: [B, C] int32; embedding rows, `ABSENT` where a bag isn't full.
        labels: [B] float32; 0 or 1.
        sample_weights: [B] float32; 1 where the examples have none, and 0 for padding.
        id_weights: [B, C] float32; one per id, or None where all are 1.
    """

    dense: Any
    ids: Any
    labels: Any
    sample_weights: Any
    id_weights: Any = None


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """The number of full batches in a split.

    An epoch leaves out the remainder: the last examples of its order.

    Raises:
        UserError: If there isn't even one full batch.
    """
    _check_batch_size(batch_size)
    if len(split) < batch_size:
        raise UserError(
            f"a batch of {batch_size} needs at least as many training examples, got "
            f"{len(split)}; make the batch smaller."
        )
    return len(split) // batch_size


@runtime_checkable
class Batches(Protocol):
    """An endless sequence of training batches, by the number of the step, from 0."""

    steps_per_epoch: int
    batch_size: int

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step."""
        ...


class TrainBatches:
    """The endless sequence of training batches, by the number of the step.

    `batches[step]` depends on the arguments and the step only, so a run that resumes at any step
    sees what it would have seen. Days come in order, shuffled as `ShuffledOrder` says. For use by
    one thread at a time.

    Args:
        split: The training split.
        batch_size: Examples per batch, B, over all processes.
        seed: Selects the permutations, 0 or more.
        shuffle_window: Examples that are shuffled among each other; 0 for all of the split.
        process_index: Which part of each batch is read here, from 0.
        process_count: Parts of a batch, P. Those of all processes, one after the other, are what
            a single process reads.

    Raises:
        UserError: If there are fewer examples than `batch_size`, P doesn't divide it, or an
            argument is out of range.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        shuffle_window: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.steps_per_epoch = steps_per_epoch(split, batch_size)
        self.batch_size = batch_size
        self._part = _part(batch_size, process_index, process_count)
        self._split = split
        self._order = ShuffledOrder(len(split), shuffle_window, seed)
        self._ones = np.ones(batch_size // process_count, np.float32)
        self._ones.flags.writeable = False

    def __getitem__(self, step: int) -> Batch:
        """Returns this process's part, B/P examples, of global step `step`, counted from 0."""
        if step < 0:
            raise IndexError(f"steps are counted from 0, got {step}")
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        rows = self._order.rows(epoch, start + self._part.start, start + self._part.stop)
        examples = self._split.take(rows)
        weights = self._ones if examples.sample_weights is None else examples.sample_weights
        labels = examples.labels.astype(np.float32, copy=False)
        return Batch(examples.dense, examples.ids, labels, weights)


def evaluation_batches(
    split: Split, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Yields the examples in order, each exactly once.

    The last batch is filled up with examples of weight 0, no ids and zeros. Every process yields
    as many batches, parts of B/P examples as in `TrainBatches`.

    Raises:
        UserError: If `batch_size` is less than 1, or the processes don't divide it.
    """
    _check_batch_size(batch_size)
    return _consecutive(split, batch_size, _part(batch_size, process_index, process_count))


def _consecutive(split: Split, batch_size: int, part: slice) -> Iterator[Batch]:
    size = part.stop - part.start
    for start in range(part.start, len(split) + part.start, batch_size):
        examples = split.take(np.arange(min(start, len(split)), min(start + size, len(split))))
        weights = np.ones(len(examples), np.float32)
        padding = size - len(examples)
        yield Batch(
            dense=np.pad(examples.dense, ((0, padding), (0, 0))),
            ids=np.pad(examples.ids, ((0, padding), (0, 0)), constant_values=ABSENT),
            labels=np.pad(examples.labels.astype(np.float32, copy=False), (0, padding)),
            sample_weights=np.pad(
                weights if examples.sample_weights is None else examples.sample_weights,
                (0, padding),
            ),
        )


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
    """The places in a batch that a process reads."""
    if not 0 <= process_index < process_count:
        raise UserError(
            f"expected a process_index from 0 to process_count - 1, got process {process_index} "
            f"of {process_count}."
        )
    if batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} can't be split evenly over {process_count} processes; "
            "choose a multiple."
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, got {batch_size}.")

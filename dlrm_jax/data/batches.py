"""Batches of a fixed size: shuffled for training, in order and padded for evaluation."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.arrays import ABSENT, Split
from dlrm_jax.data.grouped_order import GroupedOrder
from dlrm_jax.data.order import ShuffledOrder
from dlrm_jax.errors import UserError


class Batch(NamedTuple):
    """B examples, as NumPy arrays or, once placed on devices, JAX arrays.

    Every batch of a run has the same shapes, so that a step is compiled once.

    Attributes:
        dense: features that enter the bottom MLP, [B, D] float32.
        ids: rows of the embedding tables, [B, C] int32; `ABSENT` where a bag isn't full.
        labels: 0 or 1, [B] float32; [B, H] if there are several, with NaN for missing ones.
        sample_weights: weights of the examples, [B] float32; 0 for padding.
        id_weights: weights of the ids, [B, C] float32; None where all are 1.
        groups: number of each example's group in the batch, [B] int32, ascending; None if nothing
            reads them.
    """

    dense: Any
    ids: Any
    labels: Any
    sample_weights: Any
    id_weights: Any = None
    groups: Any = None


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """The number of full batches in a split.

    An epoch leaves out the remainder: the last examples of its order.

    Raises:
        UserError: the split has fewer examples than a batch.
    """
    _check_batch_size(batch_size)
    if len(split) < batch_size:
        raise UserError(
            f"batch_size: expected at most the {len(split):,} training examples, got "
            f"{batch_size:,}; make it smaller"
        )
    return len(split) // batch_size


@runtime_checkable
class Batches(Protocol):
    """An endless sequence of training batches, indexed by the step, from 0."""

    steps_per_epoch: int
    batch_size: int

    def __getitem__(self, step: int) -> Any:
        """The batch of a step: a `Batch`, or another tuple of arrays with ``sample_weights``."""
        ...


class TrainBatches:
    """The endless sequence of training batches of a split, indexed by the step.

    `batches[step]` depends on the arguments and the step only, so a resumed run reads the batches
    that an unbroken run would have read. Days come in order; `ShuffledOrder` shuffles them. Only
    one thread at a time may use it.

    Args:
        split: the training split.
        batch_size: examples per batch, B, over all processes.
        seed: seed of the permutations, 0 or more.
        shuffle_window: number of consecutive examples that are shuffled together; 0 is the whole
            split.
        process_index: index of this process, from 0.
        process_count: number of processes, P. Each reads B/P examples of a batch; those of all
            processes, concatenated, are the batch that a single process reads.
        unseen: replacement of ids by that of unseen values, see `unseen_ids`; None for none.
        groups: code of each example's group, [N]; negative is none. Examples of a group then lie
            side by side, see `GroupedOrder`; a batch may cut off one group at its begin and one at
            its end.

    Raises:
        UserError: there are fewer examples than `batch_size`, P doesn't divide it, an argument is
            out of range, or ids aren't rows.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        shuffle_window: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        unseen: Callable[[Any, int, slice, int], Any] | None = None,
        groups: Int64[np.ndarray, " N"] | None = None,
    ):
        if any(day.ids.dtype != np.int32 for day in split.days):
            raise UserError("training needs rows of tables as ids, int32, got 64-bit ids")
        self.steps_per_epoch = steps_per_epoch(split, batch_size)
        self.batch_size = batch_size
        self._own = own_examples(batch_size, process_index, process_count)
        self._split = split
        self._unseen = unseen
        self._order: ShuffledOrder | GroupedOrder = (
            ShuffledOrder(len(split), shuffle_window, seed)
            if groups is None
            else GroupedOrder(groups, shuffle_window, seed)
        )
        self._ones = np.ones(batch_size // process_count, np.float32)
        self._ones.flags.writeable = False

    def __getitem__(self, step: int) -> Batch:
        """This process's examples of the batch of global step ``step``: B/P of them."""
        if step < 0:
            raise IndexError(f"steps are counted from 0, got {step}")
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = step_of_epoch * self.batch_size
        own = start + self._own.start, start + self._own.stop
        rows, groups = self._order.rows(epoch, *own), None
        if isinstance(self._order, GroupedOrder):
            groups = self._order.numbers(epoch, start, *own)
        examples = self._split.take(rows)
        sample_weights = self._ones if examples.sample_weights is None else examples.sample_weights
        labels, ids = examples.labels.astype(np.float32, copy=False), examples.ids
        if self._unseen:
            ids = self._unseen(ids, step, self._own, self.batch_size)
        return Batch(examples.dense, ids, labels, sample_weights, groups=groups)


class LaterBatches:
    """Batches of a run that counts its steps on from those of another one.

    Args:
        batches: batches of the run by its own steps, from 0.
        first: number of steps before its first one.
    """

    def __init__(self, batches: Batches, first: int):
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self._batches, self._first = batches, first

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, which counts on."""
        return self._batches[step - self._first]


def evaluation_batches(
    split: Split, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Yields the examples in order, each exactly once.

    The last batch is padded with examples of weight 0, no ids and zeros.

    Args:
        split: the examples.
        batch_size: examples per batch, B, over all processes.
        process_index: index of this process, from 0.
        process_count: number of processes, P. Every process yields as many batches, of B/P
            examples.

    Raises:
        UserError: `batch_size` is less than 1, or the processes don't divide it.
    """
    _check_batch_size(batch_size)
    own = own_examples(batch_size, process_index, process_count)
    return (
        _padded(split, start + own.start, start + own.stop)
        for start in range(0, len(split), batch_size)
    )


def _padded(split: Split, start: int, stop: int) -> Batch:
    """The examples from start to stop, padded where they go beyond the split."""
    examples = split.take(np.arange(min(start, len(split)), min(stop, len(split))))
    sample_weights = examples.sample_weights
    if sample_weights is None:
        sample_weights = np.ones(len(examples), np.float32)
    padding = (0, stop - start - len(examples))
    labels = examples.labels.astype(np.float32, copy=False)
    return Batch(
        dense=np.pad(examples.dense, (padding, (0, 0))),
        ids=np.pad(examples.ids, (padding, (0, 0)), constant_values=ABSENT),
        labels=np.pad(labels, (padding, *[(0, 0)] * (labels.ndim - 1))),
        sample_weights=np.pad(sample_weights, padding),
    )


def own_examples(batch_size: int, process_index: int, process_count: int) -> slice:
    """The examples of a batch that a process trains on.

    Args:
        batch_size: examples of the batch, B.
        process_index: index of the process, from 0.
        process_count: number of processes, P.

    Raises:
        UserError: there is no such process, or P doesn't divide B.
    """
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

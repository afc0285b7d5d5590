"""Batches of packed sequences: for training by the step, for questions in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.errors import UserError
from dlrm_jax.models.block_pairs import BLOCK
from dlrm_jax.sequential.dealing import deal_batches, deal_devices, tokens_for
from dlrm_jax.sequential.interactions import Interactions
from dlrm_jax.sequential.questions import Questions
from dlrm_jax.sequential.settings import SequentialSettings

_NEGATIVES = 0x6E657874
"""First part of the seeds of negatives, which sets them apart from those of the order."""


class SequenceBatch(NamedTuple):
    """B sequences of D devices. The tokens of a device's B/D rows are those of its sequences.

    Read row by row, the tokens of a device are its sequences one behind the other, then filling:
    where a sequence ends has nothing to do with where a row does.

    Attributes:
        lengths: number of tokens of each sequence, [B] int32; 0 for none.
        items: item of each token, [B, K] int32; `ABSENT` for filling.
        times: time of each token, [B, K] int32, in seconds since the first one of the data.
        next_times: time of the item that follows, [B, K] int32.
        targets: the item that follows, [B, K] int32; `ABSENT` for filling.
        numbers: number of each token in the batch, [B, K] int32, the same on every mesh.
        candidates: items that the targets compete with, [B, M] int32; `ABSENT` for none.
        log_q: logarithm of the probability by which each was drawn, [B, M] float32; +∞ for none.
        sample_weights: weight of each token in the loss, [B, K] float32; 0 for filling.
    """

    lengths: Any
    items: Any
    times: Any
    next_times: Any
    targets: Any
    numbers: Any
    candidates: Any
    log_q: Any
    sample_weights: Any


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The sizes of all batches of a run.

    Attributes:
        sequences: number of sequences of a batch, B.
        devices: number of devices, D.
        row: number of tokens of a row, K.
        candidates: number of candidates of a row, M.
    """

    sequences: int
    devices: int
    row: int
    candidates: int

    @property
    def tokens(self) -> int:
        """The number of tokens of a device with its filling, T."""
        return self.sequences // self.devices * self.row

    def flat(self, value: int | float, dtype: Any) -> np.ndarray:
        """An array for the tokens of each device, [D, T]."""
        return np.full((self.devices, self.tokens), value, dtype)

    def rows(self, flat: np.ndarray) -> np.ndarray:
        """The same array by rows, [B, K]."""
        return flat.reshape(self.sequences, self.row)


def shapes_for(
    lengths: Int64[np.ndarray, " U"], items: int, settings: SequentialSettings, devices: int
) -> Shapes:
    """The sizes of the batches of a run.

    Args:
        lengths: number of tokens of each sequence for training, [U].
        items: number of items, V.
        settings: settings of the run.
        devices: number of devices.

    Raises:
        UserError: there are fewer sequences than a batch has.
    """
    batch = settings.batch_size
    if len(lengths) < batch:
        raise UserError(
            f"batch_size: expected at most the {len(lengths):,} pieces of histories to train on, "
            f"got {batch:,}"
        )
    own = batch // devices
    # A history that is asked for may be as long as any.
    tokens = max(
        tokens_for(lengths, batch, devices, BLOCK), -(-settings.max_length // BLOCK) * BLOCK
    )
    row = -(-tokens // own)
    while own * row % BLOCK:
        row += 1
    return Shapes(batch, devices, row, -(-(settings.negatives or items) // batch))


class SequenceTraining:
    """The endless sequence of training batches, indexed by the step, from 0.

    A user's interactions for training are cut into pieces, from their end on: the tokens of a piece
    are at most ``max_length`` interactions, and each one's target is that which follows. So each
    interaction but a user's first one is a target once.

    Args:
        interactions: interactions.
        train: interactions of each user for training, see `questions.Split`.
        settings: settings of the run.
        devices: number of devices, which divides the batch size.

    Raises:
        UserError: there are fewer sequences than a batch has, or times are too far apart.
    """

    def __init__(
        self,
        interactions: Interactions,
        train: Int64[np.ndarray, "U 2"],
        settings: SequentialSettings,
        devices: int,
    ):
        self._data, self._settings = interactions, settings
        self._firsts, self._ends = _pieces(train, settings)
        self._lengths = self._ends - self._firsts - 1
        items = len(interactions.values)
        self.shapes = shapes_for(self._lengths, items, settings, devices)
        self.batch_size = settings.batch_size
        self.steps_per_epoch = len(self._lengths) // self.batch_size
        self._seconds = relative_seconds(interactions)
        self._probabilities = _probabilities(interactions, train, settings)
        self._up_to = np.cumsum(self._probabilities)
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def tokens_per_epoch(self) -> float:
        """The mean number of tokens of an epoch's batches, filling left out."""
        return float(self._lengths.mean()) * self.batch_size * self.steps_per_epoch

    def __getitem__(self, step: int) -> SequenceBatch:
        """The batch of a global step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            dealt = deal_batches(self._lengths, self.batch_size, self._settings.seed, epoch)
            self._epoch = epoch, dealt
        chosen = self._epoch[1][number]
        dealt = deal_devices(self.batch_size, self.shapes.devices)
        firsts, ends = self._firsts[chosen], self._ends[chosen] - 1
        candidates, log_q = self._candidates(step)
        packed = pack(self._data, self._seconds, firsts, ends, dealt, self.shapes)
        return packed._replace(candidates=candidates, log_q=log_q)

    def _candidates(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Candidates of a step and logarithms of their probabilities; all items without negatives.

        All items have the probability 1: their sum is whole.
        """
        count, shape = self._settings.negatives, (self.shapes.sequences, self.shapes.candidates)
        if count:
            rng = np.random.default_rng([_NEGATIVES, self._settings.seed, step])
            drawn = np.searchsorted(self._up_to, rng.random(count) * self._up_to[-1], "right")
            log_q = np.log(count * self._probabilities[drawn])
        else:
            drawn, log_q = np.arange(len(self._probabilities)), np.zeros(len(self._probabilities))
        candidates = np.full(shape, ABSENT, np.int32)
        logs = np.full(shape, np.inf, np.float32)
        candidates.ravel()[: len(drawn)], logs.ravel()[: len(drawn)] = drawn, log_q
        return candidates, logs


def _pieces(
    train: Int64[np.ndarray, "U 2"], settings: SequentialSettings
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """Place of the first token of each piece, and that behind its last target, [P]."""
    targets = np.maximum(train[:, 1] - train[:, 0] - 1, 0)
    counts = -(-targets // settings.max_length)
    if settings.pieces:
        counts = np.minimum(counts, settings.pieces)
    user = np.repeat(np.arange(len(train)), counts)
    back = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = train[user, 1] - back * settings.max_length
    return np.maximum(train[user, 0], ends - settings.max_length - 1), ends


def _probabilities(
    interactions: Interactions, train: Int64[np.ndarray, "U 2"], settings: SequentialSettings
) -> Float64[np.ndarray, " V"]:
    """The probability of each item to be drawn as a negative."""
    count = len(interactions.values)
    if settings.sampler == "uniform":
        return np.full(count, 1 / count)
    place = np.arange(len(interactions))
    user = np.repeat(np.arange(len(train)), interactions.lengths)
    seen = np.bincount(interactions.items[place < train[user, 1]], minlength=count)
    return seen / seen.sum()


def question_batches(
    interactions: Interactions, questions: Questions, shapes: Shapes, max_length: int
) -> Iterator[tuple[Int64[np.ndarray, " q"], SequenceBatch, Int32[np.ndarray, " q"]]]:
    """Yields questions in order, as many at a time as there is room for.

    Args:
        interactions: interactions.
        questions: questions.
        shapes: sizes of a batch.
        max_length: longest history; of longer ones the latest interactions are taken.

    Yields:
        Numbers of the questions, [q]; a batch of their histories without targets and candidates;
        and the sequence of the batch, 0 to B - 1, that is the history of each.
    """
    seconds = relative_seconds(interactions)
    firsts = np.maximum(questions.firsts, questions.asked - max_length)
    lengths = questions.asked - firsts
    own, start = shapes.sequences // shapes.devices, 0
    while start < len(lengths):
        # Each device takes histories until the next one has no room.
        numbers = np.full((shapes.devices, own), -1)
        for device in range(shapes.devices):
            ends = np.cumsum(lengths[start : start + own])
            count = int(np.searchsorted(ends, shapes.tokens, "right"))
            numbers[device, :count] = np.arange(start, start + count)
            start += count
        taken = np.flatnonzero(numbers.ravel() >= 0).astype(np.int32)
        chosen = numbers.ravel()[taken]
        dealt = np.full((shapes.devices, own), -1)
        dealt.ravel()[taken] = np.arange(len(taken))
        packed = pack(interactions, seconds, firsts[chosen], questions.asked[chosen], dealt, shapes)
        yield chosen, packed, taken


def pack(
    interactions: Interactions,
    seconds: Int32[np.ndarray, " N"],
    firsts: Int64[np.ndarray, " n"],
    ends: Int64[np.ndarray, " n"],
    dealt: Int64[np.ndarray, "D b"],
    shapes: Shapes,
) -> SequenceBatch:
    """Lays sequences out for devices; there are no candidates.

    Args:
        interactions: interactions.
        seconds: time of each, see `relative_seconds`.
        firsts: place of the first interaction of each sequence.
        ends: place behind its last one, which is the target of that.
        dealt: sequences of each device, from 0 to n - 1; negative for none.
        shapes: sizes of the batch.
    """
    lengths = np.where(dealt >= 0, (ends - firsts)[dealt], 0)
    before = np.concatenate([[0], np.cumsum(ends - firsts)[:-1]])
    source = shapes.flat(-1, np.int64)
    numbers = shapes.flat(0, np.int32)
    for device, sequences in enumerate(dealt):
        own = sequences[sequences >= 0]
        if not len(own):
            continue
        # Places of their interactions, one sequence behind the other.
        counts = (ends - firsts)[own]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        source[device, : len(inside)] = np.repeat(firsts[own], counts) + inside
        numbers[device, : len(inside)] = np.repeat(before[own], counts) + inside
    there = source >= 0
    following = np.minimum(source + 1, len(seconds) - 1)

    def of(values: np.ndarray, places: np.ndarray, absent: int) -> np.ndarray:
        return shapes.rows(np.where(there, values[places], absent).astype(np.int32))

    shape = shapes.sequences, shapes.candidates
    return SequenceBatch(
        lengths=lengths.reshape(-1).astype(np.int32),
        items=of(interactions.items, source, ABSENT),
        times=of(seconds, source, 0),
        next_times=of(seconds, following, 0),
        targets=of(interactions.items, following, ABSENT),
        numbers=shapes.rows(numbers),
        candidates=np.full(shape, ABSENT, np.int32),
        log_q=np.full(shape, np.inf, np.float32),
        sample_weights=shapes.rows(there.astype(np.float32)),
    )


def relative_seconds(interactions: Interactions) -> Int32[np.ndarray, " N"]:
    """The times in seconds since the first one, [N].

    Raises:
        UserError: they are more than 2^31 seconds, 68 years, apart.
    """
    found = interactions.times - interactions.times.min()
    if found.max() >= 2**31:
        raise UserError(
            f"times: expected seconds that are less than 68 years apart, got some from "
            f"{interactions.times.min()} to {interactions.times.max()}; give them in seconds"
        )
    return found.astype(np.int32)

"""Batches of packed sequences: for training by the step, for questions in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int32, Int64

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.sequential.dealing import deal_batches, deal_devices
from dlrm_jax.sequential.interactions import Interactions, counts_in
from dlrm_jax.sequential.packing import (
    SequenceBatch,
    Shapes,
    pack,
    relative_seconds,
    rows_of_process,
    shapes_for,
)
from dlrm_jax.sequential.questions import Questions
from dlrm_jax.sequential.settings import SequentialSettings

_NEGATIVES = 0x6E657874
"""First part of the seeds of negatives, which sets them apart from those of the order."""


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
        items, longest = len(interactions.values), int(interactions.lengths.max())
        self.shapes = shapes_for(self._lengths, longest, items, settings, devices)
        self.batch_size = settings.batch_size
        self.steps_per_epoch = len(self._lengths) // self.batch_size
        self._seconds = relative_seconds(interactions)
        self._probabilities = self._frequencies(train)
        self._up_to = np.cumsum(self._probabilities)
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def tokens_per_epoch(self) -> float:
        """The mean number of tokens of an epoch's batches, filling left out."""
        return float(self._lengths.mean()) * self.batch_size * self.steps_per_epoch

    def __getitem__(self, step: int) -> SequenceBatch:
        """The rows of this process of the batch of a global step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            dealt = deal_batches(self._lengths, self.batch_size, self._settings.seed, epoch)
            self._epoch = epoch, dealt
        chosen = self._epoch[1][number]
        dealt = deal_devices(self.batch_size, self.shapes.devices)
        firsts, ends = self._firsts[chosen], self._ends[chosen] - 1
        packed = pack(self._data, self._seconds, firsts, ends, dealt, self.shapes)
        return rows_of_process(self._with_candidates(packed, step))

    def _with_candidates(self, batch: SequenceBatch, step: int) -> SequenceBatch:
        """The batch with the candidates of its targets, and logarithms of their probabilities.

        All items have the probability 1: their sum is whole.
        """
        settings = self._settings
        if settings.in_batch:
            there = batch.targets >= 0
            expected = there.sum() * self._probabilities[batch.targets]
            log_q = np.log(expected, out=np.full(there.shape, np.inf), where=there)
            log_q = log_q.astype(np.float32)
            return batch._replace(candidates=batch.targets, log_q=log_q)
        count, shape = settings.negatives, (self.shapes.sequences, self.shapes.candidates)
        if count:
            rng = np.random.default_rng([_NEGATIVES, settings.seed, step])
            drawn = np.searchsorted(self._up_to, rng.random(count) * self._up_to[-1], "right")
            log_q = np.log(count * self._probabilities[drawn])
        else:
            drawn, log_q = np.arange(len(self._probabilities)), np.zeros(len(self._probabilities))
        candidates = np.full(shape, ABSENT, np.int32)
        logs = np.full(shape, np.inf, np.float32)
        candidates.ravel()[: len(drawn)], logs.ravel()[: len(drawn)] = drawn, log_q
        return batch._replace(candidates=candidates, log_q=logs)

    def _frequencies(self, train: Int64[np.ndarray, "U 2"]) -> Float64[np.ndarray, " V"]:
        """The probability of each item to be drawn, or to be a target of the batch."""
        count = len(self._data.values)
        if self._settings.sampler == "uniform":
            return np.full(count, 1 / count)
        if self._settings.in_batch:
            seen = counts_in(self._data, self._firsts + 1, self._ends)
        else:
            seen = counts_in(self._data, *train.T)
        return seen / seen.sum()


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

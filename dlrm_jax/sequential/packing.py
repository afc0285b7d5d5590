"""Packed sequences: those of a device lie one behind the other, and their batch has one size."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Int32, Int64

from dlrm_jax.attention.block_pairs import BLOCK
from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.batches import own_examples
from dlrm_jax.errors import UserError
from dlrm_jax.sequential.dealing import tokens_for
from dlrm_jax.sequential.interactions import Interactions
from dlrm_jax.sequential.settings import SequentialSettings

AnyBatch = TypeVar("AnyBatch")


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
        log_q: logarithm of the number of times that each is expected among the batch's candidates,
            [B, M] float32; +∞ for none.
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
    lengths: Int64[np.ndarray, " U"],
    longest: int,
    items: int,
    settings: SequentialSettings,
    devices: int,
) -> Shapes:
    """The sizes of the batches of a run.

    Args:
        lengths: number of tokens of each sequence for training, [U].
        longest: number of interactions of the longest history.
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
    longest = min(longest, settings.max_length)
    tokens = max(tokens_for(lengths, batch, devices, BLOCK), -(-longest // BLOCK) * BLOCK)
    row = -(-tokens // own)
    while own * row % BLOCK:
        row += 1
    candidates = row if settings.in_batch else -(-(settings.negatives or items) // batch)
    return Shapes(batch, devices, row, candidates)


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


def rows_of_process(batch: AnyBatch) -> AnyBatch:
    """The rows of a batch, a tree of arrays, whose devices are this process's, [B/P, ...]."""
    own = own_examples(len(jax.tree.leaves(batch)[0]), jax.process_index(), jax.process_count())
    return jax.tree.map(lambda x: x[own], batch)


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

"""Sequences of any lengths that lie packed one behind the other, without padding to the longest."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32


class Sequences(NamedTuple):
    """Where the sequences of T packed tokens lie.

    Attributes:
        starts: place of the first token of each token's sequence, [T]; T for filling, the tokens of
            no sequence.
        times: time of each token, [T], such as seconds since the first one of the data; None
            without.
        next_times: time of the token that follows each one, also of that which isn't known yet,
            [T]: when it is asked for; None without times.
        numbers: number of each token in the batch, [T], the same on every mesh, by which dropout
            draws; None for its place.
    """

    starts: Int32[Array, " T"]
    times: Int32[Array, " T"] | None = None
    next_times: Int32[Array, " T"] | None = None
    numbers: Int32[Array, " T"] | None = None

    @property
    def present(self) -> Bool[Array, " T"]:
        """Whether a token is one of a sequence, [T]."""
        return self.starts < len(self.starts)

    @property
    def positions(self) -> Int32[Array, " T"]:
        """The place of each token in its sequence from 0 on, [T]; 0 for filling."""
        place = jnp.arange(len(self.starts), dtype=jnp.int32)
        return jnp.maximum(place - self.starts, 0)

    @property
    def lasts(self) -> Int32[Array, " T"]:
        """The place of the last token of each token's sequence, [T]; T - 1 for filling."""
        return jnp.searchsorted(self.starts, self.starts, side="right").astype(jnp.int32) - 1


def sequences_of(
    lengths: Int32[Array, " B"],
    tokens: int,
    times: Int32[Array, " T"] | None = None,
    next_times: Int32[Array, " T"] | None = None,
    numbers: Int32[Array, " T"] | None = None,
) -> Sequences:
    """The sequences of some lengths, the first of which begins at the first token.

    Args:
        lengths: number of tokens of each sequence, [B]; they sum to T at most.
        tokens: number of tokens with filling behind the last sequence, T.
        times: see `Sequences`.
        next_times: see `Sequences`.
        numbers: see `Sequences`.
    """
    ends = jnp.cumsum(lengths)
    place = jnp.arange(tokens, dtype=jnp.int32)
    number = jnp.searchsorted(ends, place, side="right")  # passes over sequences without tokens
    starts = jnp.concatenate([ends - lengths, jnp.full(1, tokens, ends.dtype)])[number]
    return Sequences(starts.astype(jnp.int32), times, next_times, numbers)

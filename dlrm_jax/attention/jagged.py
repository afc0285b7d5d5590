"""Sequences of any lengths that lie packed one behind the other, and candidates that read them."""

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


class Candidates(NamedTuple):
    """The histories of N candidates among T packed tokens.

    Candidates of one request share a history; those with a copy of it each have the same results.

    Attributes:
        firsts: place of the first token of each one's history, a whole sequence, [N].
        ends: place behind the last one, [N]; that of the first one where the history is empty, and
            for filling, which is no candidate.
        times: time of each candidate, [N], as those of the tokens; candidates of one history have
            one time. None without.
        numbers: number of each candidate in the batch, [N], the same on every mesh, by which
            dropout draws; None for its place.
    """

    firsts: Int32[Array, " N"]
    ends: Int32[Array, " N"]
    times: Int32[Array, " N"] | None = None
    numbers: Int32[Array, " N"] | None = None

    @property
    def lengths(self) -> Int32[Array, " N"]:
        """The number of tokens of each one's history, [N]."""
        return self.ends - self.firsts


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

"""The interface of encoders that rank candidates by a user's history."""

from __future__ import annotations

import abc
from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int32

from dlrm_jax.models.jagged import Sequences


class Candidates(NamedTuple):
    """The histories of N candidates among T packed tokens.

    Candidates of one request share a history; those with a copy of it each have the same results.

    Attributes:
        firsts: place of the first token of each one's history, [N].
        ends: place behind the last one, [N]; that of the first one where the history is empty, and
            for filling, which is no candidate.
        times: time of each candidate, [N], as those of the tokens; None without.
    """

    firsts: Int32[Array, " N"]
    ends: Int32[Array, " N"]
    times: Int32[Array, " N"] | None = None


class HistoryEncoder(nnx.Module):
    """From candidates and the tokens of a history to what the history says of each candidate.

    An encoder is made as ``Class(width, max_length, rngs=…, **options)``. A candidate's result
    depends on the candidate and on the tokens of its own history.
    """

    @abc.abstractmethod
    def __call__(
        self,
        history: Float[Array, "T d"],
        sequences: Sequences,
        candidates: Float[Array, "N d"],
        of: Candidates,
    ) -> Float[Array, "N d"]:
        """Returns a vector for each candidate.

        Args:
            history: vectors of the tokens of all histories, [T, d].
            sequences: where the histories are.
            candidates: vectors of the candidates, [N, d].
            of: which history is whose.
        """

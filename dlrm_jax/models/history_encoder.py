"""The interface of encoders that rank candidates by a user's history."""

from __future__ import annotations

import abc
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.attention.jagged import Candidates, Sequences


class HistoryEncoder(nnx.Module):
    """From candidates and the tokens of a history to what the history says of each candidate.

    An encoder is made as ``Class(width, max_length, rngs=…, **options)``. A candidate's result
    depends on the candidate and on the tokens of its own history. What depends on the history alone
    is computed once by `encode`; `score` reads it for as many candidates as there are, whenever
    they come.
    """

    @abc.abstractmethod
    def encode(self, history: Float[Array, "T d"], sequences: Sequences) -> Any:
        """Returns what `score` keeps of histories, a tree of arrays whose length is T.

        Args:
            history: vectors of the tokens of all histories, [T, d].
            sequences: where the histories are.
        """

    @abc.abstractmethod
    def score(
        self, kept: Any, candidates: Float[Array, "N d"], of: Candidates
    ) -> Float[Array, "N d"]:
        """Returns a vector for each candidate.

        Args:
            kept: result of `encode`.
            candidates: vectors of the candidates, [N, d].
            of: the history of each one.
        """

    def __call__(
        self,
        history: Float[Array, "T d"],
        sequences: Sequences,
        candidates: Float[Array, "N d"],
        of: Candidates,
    ) -> Float[Array, "N d"]:
        """Returns a vector for each candidate; see `encode` and `score`."""
        return self.score(self.encode(history, sequences), candidates, of)

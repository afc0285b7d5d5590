"""The mean of a history: what is known without its order, the baseline of other encoders."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.attention.jagged import Candidates, Sequences
from dlrm_jax.models.history_encoder import HistoryEncoder


class MeanHistory(HistoryEncoder):
    """The mean of a history's vectors, for all its candidates the same; zeros for an empty one.

    Args:
        width: width of the vectors, d; it isn't read, as nothing is learned.
        max_length: longest length, which isn't read either.
        rngs: random number generators, which aren't read.
    """

    def __init__(self, width: int, max_length: int, *, rngs: nnx.Rngs):
        del width, max_length, rngs

    def encode(self, history: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns the sum of each history, in the place of its first token."""
        return jnp.zeros_like(history).at[sequences.starts].add(history, mode="drop")

    def score(
        self, kept: Float[Array, "T d"], candidates: Float[Array, "N d"], of: Candidates
    ) -> Float[Array, "N d"]:
        """Returns the mean of each candidate's history."""
        del candidates
        lengths = of.lengths[:, None]
        sums = kept[jnp.minimum(of.firsts, len(kept) - 1)]
        return jnp.where(lengths > 0, sums / jnp.maximum(lengths, 1), 0)

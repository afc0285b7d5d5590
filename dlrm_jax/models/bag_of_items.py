"""The mean of a history: a baseline of encoders that doesn't know the order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.models.sequence_encoder import SequenceEncoder, TokenDropout


class BagOfItems(SequenceEncoder):
    """The mean m of the vectors up to each token's, then m + W₂ ReLU(W₁ m).

    Two histories of the same items have the same vector, whatever their order and their times.

    Args:
        width: width of the vectors, d.
        max_length: longest length that is expected; longer ones are read as well.
        dropout: share of the numbers of the tokens' vectors that are left out in training.
        rngs: random number generators.
    """

    def __init__(self, width: int, max_length: int, *, dropout: float = 0.2, rngs: nnx.Rngs):
        del max_length  # there are no positions
        self.dropout = TokenDropout(dropout, rngs=rngs)
        self.first, self.second = (nnx.Linear(width, width, rngs=rngs) for _ in range(2))

    def __call__(self, vectors: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns a vector for each token; see `SequenceEncoder`."""
        x = jnp.where(sequences.present[:, None], vectors, 0)
        sums = _sums_so_far(self.dropout.of_tokens(x, sequences), sequences)
        mean = sums / (1 + sequences.positions[:, None])
        return mean + self.second(jax.nn.relu(self.first(mean)))


def _sums_so_far(x: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
    """The sums of the tokens up to each one in its sequence."""
    is_first = sequences.positions == 0

    def joined(before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
        (total, had_first), (own, has_first) = before, after
        return jnp.where(has_first[:, None], own, total + own), had_first | has_first

    return jax.lax.associative_scan(joined, (x, is_first))[0]

"""HSTU (arXiv 2402.17152), hierarchical sequential transduction units."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.attention.attention_bias import TIME_BUCKETS, Bias
from dlrm_jax.attention.jagged import Candidates, Sequences
from dlrm_jax.attention.pointwise_attention import pointwise_attention
from dlrm_jax.errors import UserError
from dlrm_jax.models.sequence_encoder import (
    Positions,
    SequenceEncoder,
    TokenDropout,
    at_least_one,
    normalized,
)

_INIT = jax.nn.initializers.normal(0.02)
_EPSILON = 1e-6


class HSTULayer(nnx.Module):
    """One unit (equations 1 to 3): x + O(norm(A v) ∘ u), with u, v, q, k = SiLU(norm(x) W).

    A are the pointwise weights of q and k, divided by the longest length, with a bias by distance
    and, where sequences have times, by time; see `pointwise_attention`. Weights begin as in the
    reference (``SequentialTransductionUnitJagged``): N(0, 0.02²), and Glorot's uniform values in O.

    Args:
        width: width of the vectors, d.
        max_length: longest length, the divisor of the weights and number of distances.
        heads: number of heads, H.
        attention_width: width of the queries and keys of a head.
        linear_width: width of u and v of a head.
        timed: whether there is a bias by time.
        dropout: share of O's inputs that are left out in training.
        rngs: random number generators.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        heads: int,
        attention_width: int,
        linear_width: int,
        timed: bool,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.heads, self.scale = heads, 1 / max_length
        self.sizes = (linear_width, linear_width, attention_width, attention_width)
        shape = (width, heads * sum(self.sizes))
        self.uvqk = nnx.Param(_INIT(rngs.params(), shape))
        uniform = jax.nn.initializers.glorot_uniform()
        self.output = nnx.Linear(heads * linear_width, width, kernel_init=uniform, rngs=rngs)
        self.by_distance = nnx.Param(_INIT(rngs.params(), (max_length,)))
        if timed:
            self.by_time = nnx.Param(_INIT(rngs.params(), (TIME_BUCKETS + 1,)))
        self.timed = timed
        self.dropout = TokenDropout(dropout, rngs=rngs)

    def __call__(self, x: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns the vectors behind the unit."""
        u, value, query, key = self.project(x)
        attended: Any = pointwise_attention(query, key, value, self.bias, sequences, self.scale)
        return self.finish(x, u, attended, sequences)

    def project(self, x: Float[Array, "n d"]) -> tuple[Array, Array, Array, Array]:
        """Gates u, [n, H v]; values, queries and keys by head, [n, H, v], [n, H, a], [n, H, a]."""
        together = jax.nn.silu(normalized(x, _EPSILON) @ self.uvqk[...])
        ends = [self.heads * sum(self.sizes[: i + 1]) for i in range(3)]
        u, *others = jnp.split(together, ends, axis=1)
        value, query, key = (part.reshape(len(x), self.heads, -1) for part in others)
        return u, value, query, key

    @property
    def bias(self) -> Bias:
        """The bias of attention by distance and, where there are times, by time."""
        return Bias(self.by_distance[...], self.by_time[...] if self.timed else None)

    def finish(
        self,
        x: Float[Array, "n d"],
        u: Float[Array, "n w"],
        attended: Float[Array, "n H v"],
        of: Sequences | Candidates,
    ) -> Float[Array, "n d"]:
        """The vectors behind the unit, given what was attended to; `of` is for dropout."""
        gated = normalized(attended.reshape(len(x), -1), _EPSILON) * u
        return self.output(self.dropout.of_tokens(gated, of)) + x


class HSTU(SequenceEncoder):
    """Units one after the other, on vectors with their positions.

    Args:
        width: width of the vectors, d.
        max_length: longest length that is expected; a longer sequence is encoded as well, its far
            distances with the bias of the last one.
        layers: number of units.
        heads: number of heads of each unit.
        attention_width: width of a head's queries and keys; 0 for d / heads.
        linear_width: width of a head's values and gates; 0 for d / heads.
        timed: whether attention has a bias by time.
        dropout: share of the inputs, and of the inputs of each unit's last layer, that are left out
            in training.
        rngs: random number generators.

    Raises:
        UserError: a size is less than 1, or sequences have no times with ``timed``.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        *,
        layers: int = 2,
        heads: int = 1,
        attention_width: int = 0,
        linear_width: int = 0,
        timed: bool = True,
        dropout: float = 0.2,
        rngs: nnx.Rngs,
    ):
        at_least_one(layers=layers, heads=heads)
        sizes = attention_width or width // heads, linear_width or width // heads
        at_least_one(attention_width=sizes[0], linear_width=sizes[1])
        self.timed = timed
        self.positions = Positions(width, max_length, dropout, rngs=rngs)
        self.layers = nnx.List(
            HSTULayer(width, max_length, heads, *sizes, timed, dropout, rngs=rngs)
            for _ in range(layers)
        )

    def __call__(self, vectors: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns a vector for each token; see `SequenceEncoder`."""
        self.check_times(sequences.times)
        x = self.positions(vectors, sequences)
        for layer in self.layers:
            x = layer(x, sequences)
        return x

    def check_times(self, times: Array | None) -> None:
        """Checks that there are times where there is a bias by time.

        Raises:
            UserError: there are none.
        """
        if self.timed and times is None:
            raise UserError(
                "hstu: expected sequences with times, got none; give their times, or timed=False"
            )

"""SASRec (arXiv 1808.09781): self-attention over a sequence, with a softmax."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.attention.causal_attention import causal_attention
from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.errors import UserError
from dlrm_jax.models.sequence_encoder import (
    Positions,
    SequenceEncoder,
    TokenDropout,
    at_least_one,
    normalized,
)

_EPSILON = 1e-8


class SASRecLayer(nnx.Module):
    """A block: y = norm(q + attention(q, x, x)), then y + W₂ ReLU(W₁ y), where q = norm(x).

    As in the SASRec of HSTU's reference, which has the residual of the paper's code: that of the
    normalized queries. Weights begin from Glorot's normal values, biases from zeros.

    Args:
        width: width of the vectors, d.
        heads: number of heads, which divides d.
        hidden_width: width of W₁'s results.
        dropout: share of the numbers behind W₁'s ReLU and behind W₂ that are left out in training.
        rngs: random number generators.
    """

    def __init__(
        self, width: int, heads: int, hidden_width: int, dropout: float, *, rngs: nnx.Rngs
    ):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            normal = jax.nn.initializers.glorot_normal()
            return nnx.Linear(inputs, outputs, kernel_init=normal, rngs=rngs)

        self.heads = heads
        self.query, self.key, self.value, self.output = (linear(width, width) for _ in range(4))
        self.first, self.second = linear(width, hidden_width), linear(hidden_width, width)
        self.dropout = TokenDropout(dropout, rngs=rngs)

    def __call__(self, x: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns the vectors behind the block."""
        q = normalized(x, _EPSILON)
        inputs = self.query(q), self.key(x), self.value(x)
        by_head = (y.reshape(len(x), self.heads, -1) for y in inputs)
        attended = self.output(causal_attention(*by_head, sequences).reshape(x.shape))
        y = normalized(q + attended, _EPSILON)
        hidden = self.dropout.of_tokens(jax.nn.relu(self.first(y)), sequences)
        return y + self.dropout.of_tokens(self.second(hidden), sequences)


class SASRec(SequenceEncoder):
    """Blocks one after the other, on vectors with their positions.

    Args:
        width: width of the vectors, d.
        max_length: longest length that is expected; places behind it have the last position.
        layers: number of blocks.
        heads: number of heads of each block, which divides d.
        hidden_width: width inside a block's two linear layers; 0 for d.
        dropout: share of the inputs and inside the linear layers that is left out in training.
        rngs: random number generators.

    Raises:
        UserError: a size is less than 1, or the heads don't divide the width.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        *,
        layers: int = 2,
        heads: int = 1,
        hidden_width: int = 0,
        dropout: float = 0.2,
        rngs: nnx.Rngs,
    ):
        at_least_one(layers=layers, heads=heads)
        if width % heads:
            raise UserError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.positions = Positions(width, max_length, dropout, rngs=rngs)
        hidden = hidden_width or width
        self.layers = nnx.List(
            SASRecLayer(width, heads, hidden, dropout, rngs=rngs) for _ in range(layers)
        )

    def __call__(self, vectors: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns a vector for each token; see `SequenceEncoder`."""
        x = self.positions(vectors, sequences)
        for layer in self.layers:
            x = layer(x, sequences)
        return x

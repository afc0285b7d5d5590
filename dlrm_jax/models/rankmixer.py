"""RankMixer (arXiv 2507.15551): tokens that exchange parts, and a network for each token."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import (
    Field,
    Model,
    Vectors,
    check_divides,
    check_positive,
    concatenated,
    concatenated_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, at_least_float32
from dlrm_jax.models.tokens import EPSILON, TokenLinear


def mixed(x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """Token mixing with T heads: result h has the h-th part of each token."""
    samples, tokens, width = x.shape
    parts = x.reshape(samples, tokens, tokens, width // tokens)
    return parts.transpose(0, 2, 1, 3).reshape(x.shape)


class RankMixerBlock(nnx.Module):
    """S = LN(mixed(X) + X), X' = LN(FFN(S) + S), with a feed-forward network for each token.

    FFNₜ(s) = W₂ₜ GELU(W₁ₜ s + b₁ₜ) + b₂ₜ.

    Args:
        tokens: number of tokens, T.
        width: width of a token, d.
        expansion: hidden width of the networks, as a multiple of d.
        rngs: random number generators of the initial values.
        dtype: type of the operands of the networks' products.
    """

    def __init__(
        self, tokens: int, width: int, expansion: int, *, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        between = expansion * width
        self.up = TokenLinear(tokens, width, between, rngs=rngs, dtype=dtype)
        self.down = TokenLinear(tokens, between, width, rngs=rngs, dtype=dtype)
        self.norms = nnx.List(nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs) for _ in range(2))

    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        """Mixes tokens, then transforms each."""
        s = self.norms[0](mixed(x) + x)
        return self.norms[1](self.down(jax.nn.gelu(self.up(s), approximate=False)) + s)


class RankMixer(Model):
    """Blocks on tokens, their mean, and an MLP to the logit.

    Dense features and vectors, side by side in the order of the fields, are cut into equal parts,
    the last one padded with zeros, and each part is projected to a token. The paper
    groups fields by meaning: order the columns so. Its sparse mixture of experts isn't here.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of the MLP; the last is 1, the logit.
        layers: number of blocks.
        tokens: number of tokens, T, and of heads.
        token_width: width of a token, a multiple of T.
        expansion: hidden width of the networks, as a multiple of the token's.
        rngs: random number generators of the initial values.
        dtype: type of the operands of products.

    Raises:
        UserError: the tokens don't divide their width, or a number isn't positive.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        layers: int = 2,
        tokens: int = 8,
        token_width: int = 64,
        expansion: int = 4,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        check_positive(layers=layers, tokens=tokens, token_width=token_width, expansion=expansion)
        check_divides("tokens", tokens, "token_width", token_width)
        self.fields = tuple(fields)
        self.tokens = tokens
        part = -(-concatenated_width(dense_features, fields) // tokens)
        self.project = TokenLinear(tokens, part, token_width, rngs=rngs, dtype=dtype)
        self.blocks = nnx.List(
            RankMixerBlock(tokens, token_width, expansion, rngs=rngs, dtype=dtype)
            for _ in range(layers)
        )
        widths = (token_width, *hidden(top_mlp), 1)
        self.top = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        inputs = concatenated(dense, vectors, self.fields)
        padding = -inputs.shape[1] % self.tokens
        parts = jnp.pad(inputs, ((0, 0), (0, padding))).reshape(inputs.shape[0], self.tokens, -1)
        x = self.project(parts)
        with jax.named_scope("interaction"):
            for block in self.blocks:
                x = block(x)
        with jax.named_scope("top_mlp"):
            return at_least_float32(self.top(jnp.mean(x, axis=1))[:, 0])

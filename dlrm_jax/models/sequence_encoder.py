"""What encoders of sequences share: an interface, positions, and the norms without parameters."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from dlrm_jax.attention.jagged import Candidates, Sequences
from dlrm_jax.errors import UserError


class SequenceEncoder(nnx.Module):
    """From the vectors of a sequence's tokens to what each token, with those before it, says.

    An encoder is made as ``Class(width, max_length, rngs=…, **options)``. A token's result depends
    on the tokens up to it in its own sequence. Sequences may be longer than ``max_length``, unless
    the class says otherwise.
    """

    @abc.abstractmethod
    def __call__(self, vectors: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns a vector for each token.

        Args:
            vectors: vectors of the tokens, [T, d].
            sequences: where the sequences of the tokens are.
        """


class TokenDropout(nnx.Dropout):
    """Dropout whose mask for a token depends on its number, and not on where it is packed."""

    def of_tokens(self, x: Float[Array, "T d"], of: Sequences | Candidates) -> Float[Array, "T d"]:
        """The vectors with some numbers left out, the others larger for it; see `nnx.Dropout`."""
        if self.deterministic or not self.rate or self.rngs is None:
            return x
        # Bypasses what makes streams of keys differ from device to device.
        key = nnx.RngStream.__call__(self.rngs)  # pyright: ignore[reportArgumentType]
        numbers = of.numbers
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            key, jnp.arange(len(x)) if numbers is None else numbers
        )
        kept = 1 - self.rate
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, kept, x.shape[1:]))(keys)
        return jnp.where(mask, x / kept, 0)


class Positions(nnx.Module):
    """Adds a learned vector of its place in the sequence to each scaled vector, √d · v + p.

    As `LearnablePositionalEmbeddingInputFeaturesPreprocessor` of HSTU's reference: places from the
    begin of the sequence, values from N(0, 1/d) within two standard deviations, then dropout.
    Places from ``max_length`` on have the last vector.

    Args:
        width: width of the vectors, d.
        max_length: number of places with vectors of their own.
        dropout: share of the numbers that are left out in training.
        rngs: random number generators.
    """

    def __init__(self, width: int, max_length: int, dropout: float, *, rngs: nnx.Rngs):
        at_least_one(width=width, max_length=max_length)
        init = jax.nn.initializers.truncated_normal(width**-0.5)
        self.vectors = nnx.Param(init(rngs.params(), (max_length, width)))
        self.dropout = TokenDropout(dropout, rngs=rngs)

    def __call__(self, vectors: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns the sums; zeros for filling."""
        found = self.at(sequences.positions, vectors, sequences)
        return jnp.where(sequences.present[:, None], found, 0)

    def at(
        self,
        places: Int32[Array, " n"],
        vectors: Float[Array, "n d"],
        of: Sequences | Candidates,
    ) -> Float[Array, "n d"]:
        """The sums of vectors at some places of their sequences."""
        own = self.vectors[...]
        place = jnp.minimum(places, len(own) - 1)
        return self.dropout.of_tokens(vectors * own.shape[1] ** 0.5 + own[place], of)


def normalized(x: Float[Array, "T d"], epsilon: float) -> Float[Array, "T d"]:
    """Layer normalization without parameters."""
    mean = x.mean(axis=1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


def at_least_one(**values: int) -> None:
    """Checks sizes of an encoder.

    Raises:
        UserError: one is less than 1.
    """
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}: expected at least 1, got {value}")

"""What encoders of sequences share: an interface, positions, and the norms without parameters."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.jagged import Sequences


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
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, vectors: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """Returns the sums; zeros for filling."""
        own = self.vectors[...]
        place = jnp.minimum(sequences.positions, len(own) - 1)
        found = self.dropout(vectors * own.shape[1] ** 0.5 + own[place])
        return jnp.where(sequences.present[:, None], found, 0)


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

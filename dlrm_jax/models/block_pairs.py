"""Pairs of blocks of tokens between which causal attention inside sequences takes place.

T packed tokens are cut into blocks. A query block needs the key blocks from the one in which the
first of its sequences begins up to itself. All these pairs are numbered, and a loop takes a chunk
of them at a time, as many as the batch has: time grows with the sequences' own lengths, and nothing
of size T × T is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Shaped

from dlrm_jax.errors import UserError
from dlrm_jax.models.jagged import Sequences

BLOCK = 64
"""Tokens of a block; it divides T."""

_PAIRS = 16  # pairs of a chunk: enough for batched products, few enough for the caches of a CPU


class Chunk(NamedTuple):
    """P pairs of blocks.

    Attributes:
        queries: numbers of the query blocks, [P], ascending.
        keys: numbers of the key blocks, [P].
        seen: whether a query's token attends to a key's, [P, `BLOCK`, `BLOCK`].
    """

    queries: Int32[Array, " P"]
    keys: Int32[Array, " P"]
    seen: Bool[Array, "P q k"]


class BlockPairs:
    """All pairs of the sequences of a batch.

    Args:
        sequences: where the sequences are.

    Raises:
        UserError: `BLOCK` doesn't divide the number of tokens.
    """

    def __init__(self, sequences: Sequences):
        self._starts = blocks(sequences.starts)
        number = jnp.arange(len(self._starts), dtype=jnp.int32)
        # Nothing but filling has no pair.
        self._first = jnp.minimum(self._starts.min(axis=1) // BLOCK, number + 1)
        counts = number + 1 - self._first
        self._up_to = jnp.cumsum(counts).astype(jnp.int32)
        self._before = self._up_to - counts

    def loop(self, add: Callable[[Chunk, Any], Any], start: Any) -> Any:
        """Adds what each chunk contributes.

        Args:
            add: function of a chunk and the sums so far that returns the new sums.
            start: sums before the first chunk, a tree of arrays.
        """
        chunks = -(-self._up_to[-1] // _PAIRS)
        return jax.lax.fori_loop(0, chunks, lambda n, sums: add(self._chunk(n), sums), start)

    def _chunk(self, n: Any) -> Chunk:
        pair = n * _PAIRS + jnp.arange(_PAIRS, dtype=jnp.int32)
        there = pair < self._up_to[-1]
        query = jnp.searchsorted(self._up_to, pair, side="right").astype(jnp.int32)
        query = jnp.minimum(query, len(self._first) - 1)
        key = jnp.where(there, self._first[query] + pair - self._before[query], 0)
        place = jnp.arange(BLOCK, dtype=jnp.int32)
        of_query = query[:, None, None] * BLOCK + place[:, None]
        of_key = key[:, None, None] * BLOCK + place
        in_sequence = self._starts[query][:, :, None] <= of_key
        return Chunk(query, key, (of_key <= of_query) & in_sequence & there[:, None, None])


def blocks(tokens: Shaped[Array, "T *_"]) -> Shaped[Array, "N b *_"]:
    """Arrays of tokens in blocks.

    Raises:
        UserError: `BLOCK` doesn't divide the number of tokens.
    """
    if len(tokens) % BLOCK:
        raise UserError(
            f"sequences: expected a multiple of {BLOCK} packed tokens on a device, got "
            f"{len(tokens)}; fill them up with tokens of no sequence"
        )
    return tokens.reshape(-1, BLOCK, *tokens.shape[1:])


class Products:
    """Products of blocks by einsum's notation, summed in at least float32.

    Args:
        dtype: type of the factors. Those of float32 aren't rounded to shorter types.
    """

    def __init__(self, dtype: Any):
        self.dtype, self.sum_dtype = dtype, jnp.promote_types(dtype, jnp.float32)
        is_short = self.sum_dtype != dtype
        self._precision = None if is_short else jax.lax.Precision.HIGHEST

    def __call__(self, notation: str, *factors: Array) -> Float[Array, "..."]:
        """The product of some factors by `jax.numpy.einsum`'s notation."""
        cast = (x.astype(self.dtype) for x in factors)
        return jnp.einsum(
            notation, *cast, precision=self._precision, preferred_element_type=self.sum_dtype
        )

    def zeros(self, like: Array) -> Float[Array, "..."]:
        """Zeros to sum products in, of an array's shape."""
        return jnp.zeros(like.shape, self.sum_dtype)

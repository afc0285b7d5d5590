"""Pairs of blocks of queries and keys between which attention takes place.

Queries and T packed keys are cut into blocks. A query block needs the key blocks from the first key
that one of its queries attends to up to the last one. All these pairs are numbered, and a loop
takes a chunk of them at a time, as many as the batch has: time grows with the sequences' own
lengths, and nothing of size queries × T is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Shaped

from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.errors import UserError

BLOCK = 64
"""Queries or keys of a block; it divides the number of both."""

_PAIRS = 16  # pairs of a chunk: enough for batched products, few enough for the caches of a CPU


class Chunk(NamedTuple):
    """P pairs of blocks.

    Attributes:
        queries: numbers of the query blocks, [P], ascending.
        keys: numbers of the key blocks, [P].
        seen: whether a query attends to a key, [P, queries of a block, keys of a block].
    """

    queries: Int32[Array, " P"]
    keys: Int32[Array, " P"]
    seen: Bool[Array, "P q k"]


class BlockPairs:
    """All pairs of the queries of a batch, each of which attends to keys that lie together.

    Args:
        firsts: place of the first key that a query attends to, [Q].
        ends: place behind the last one, [Q]; no more than the first one's for a query that attends
            to nothing.
        query_block: queries of a block, a divisor of Q.
        key_block: keys of a block, a divisor of their number.

    Raises:
        UserError: `query_block` doesn't divide the number of queries.
    """

    def __init__(
        self,
        firsts: Int32[Array, " Q"],
        ends: Int32[Array, " Q"],
        query_block: int = BLOCK,
        key_block: int = BLOCK,
    ):
        self._firsts, self._ends = blocks(firsts, query_block), blocks(ends, query_block)
        self._key_block = key_block
        attends = self._firsts < self._ends
        most = jnp.iinfo(jnp.int32).max
        self._first = jnp.where(attends, self._firsts, most).min(axis=1) // key_block
        last = jnp.where(attends, self._ends - 1, -1).max(axis=1) // key_block
        counts = jnp.maximum(last + 1 - self._first, 0)  # no pair where nothing is attended to
        self._up_to = jnp.cumsum(counts).astype(jnp.int32)
        self._before = self._up_to - counts

    @classmethod
    def causal(cls, sequences: Sequences) -> BlockPairs:
        """Pairs of tokens that attend to those up to themselves in their sequence.

        Args:
            sequences: where the sequences are.
        """
        place = jnp.arange(len(sequences.starts), dtype=jnp.int32)
        return cls(sequences.starts, place + 1)  # those of filling end before they start

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
        inside = jnp.arange(self._key_block, dtype=jnp.int32)
        place = key[:, None, None] * self._key_block + inside
        seen = (self._firsts[query][:, :, None] <= place) & (place < self._ends[query][:, :, None])
        return Chunk(query, key, seen & there[:, None, None])


def blocks(tokens: Shaped[Array, "T *_"], size: int = BLOCK) -> Shaped[Array, "N b *_"]:
    """Arrays of tokens in blocks.

    Args:
        tokens: an array of T tokens.
        size: tokens of a block.

    Raises:
        UserError: the size doesn't divide the number of tokens.
    """
    check_blocks(len(tokens), size)
    return tokens.reshape(-1, size, *tokens.shape[1:])


def check_blocks(tokens: int, size: int = BLOCK) -> None:
    """Checks that a number of tokens comes in whole blocks.

    Raises:
        UserError: the size doesn't divide it.
    """
    if tokens % size:
        raise UserError(
            f"sequences: expected a multiple of {size} packed tokens on a device, got "
            f"{tokens}; fill them up with tokens of no sequence"
        )


class Products:
    """Products of blocks by einsum's notation, summed in at least float32.

    Args:
        dtype: type of the factors. Those of float32 aren't rounded to shorter types.
    """

    def __init__(self, dtype: Any):
        self.dtype, self.sum_dtype = dtype, jnp.promote_types(dtype, jnp.float32)
        is_short = self.sum_dtype != dtype
        precisions = jax.lax.Precision
        self._precision = precisions.DEFAULT if is_short else precisions.HIGHEST

    def __call__(self, notation: str, *factors: Array) -> Float[Array, "..."]:
        """The product of some factors by `jax.numpy.einsum`'s notation."""
        cast = (x.astype(self.dtype) for x in factors)
        return jnp.einsum(
            notation, *cast, precision=self._precision, preferred_element_type=self.sum_dtype
        )

    def zeros(self, like: Array) -> Float[Array, "..."]:
        """Zeros to sum products in, of an array's shape."""
        return jnp.zeros(like.shape, self.sum_dtype)

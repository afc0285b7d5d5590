"""What the kernels of HSTU's attention compute for a block of queries and a block of keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def spans(starts: Int32[Array, " T"], block: int) -> tuple[Int32[Array, " N"], Int32[Array, " N"]]:
    """The first block of keys of each block of queries, and one past the last that needs a block.

    A block of queries needs all blocks up to its own; one of nothing but filling needs none.

    Args:
        starts: place of the first token of each token's sequence; T for filling.
        block: tokens of a block, a divisor of T.
    """
    number = jnp.arange(len(starts) // block, dtype=jnp.int32)
    first = jnp.minimum(starts.reshape(-1, block).min(1) // block, number + 1)
    behind = jnp.searchsorted(first, number, side="right")  # sequences lie one behind the other
    return first, behind.astype(jnp.int32)


def places(query_block: Any, key_block: Any, block: int) -> tuple[Array, Array]:
    """The places of the queries and of the keys of a pair of blocks, [block, block] each."""
    of_query, of_key = (
        number * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), axis)
        for axis, number in enumerate((query_block, key_block))
    )
    return of_query, of_key


def pointwise_weights(
    scores: Float[Array, "q k"], seen: Bool[Array, "q k"], scale: float
) -> tuple[Float[Array, "q k"], Float[Array, "q k"]]:
    """The weights scale · SiLU(score), and their derivatives by the scores.

    Args:
        scores: scores of keys for queries, with their bias.
        seen: whether a query attends to a key.
        scale: factor of all weights.
    """
    factor = jnp.where(seen, jnp.float32(scale), jnp.float32(0))
    half = jax.nn.sigmoid(scores)
    return factor * scores * half, factor * half * (1 + scores * (1 - half))


def product(
    x: Array, y: Array, of_x: int, of_y: int, exact: Any = jax.lax.Precision.HIGHEST
) -> Float[Array, "m n"]:
    """The sums of products over a dimension of each, in float32.

    Args:
        x: first factor, which is rounded to the type of the second one.
        y: second factor.
        of_x: dimension of the first one.
        of_y: dimension of the second one.
        exact: precision by which factors of float32 are multiplied.
    """
    over = ((of_x,), (of_y,)), ((), ())
    precision = exact if y.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        x.astype(y.dtype), y, over, precision=precision, preferred_element_type=jnp.float32
    )

"""The loss of tokens: the item that follows among all items, or among some that are drawn."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_NONE = -1e30  # score of what is no candidate; infinite ones have no gradients, where all are

_CHUNK = 1 << 25
"""Scores of a device that are in memory at a time."""


class Candidates(NamedTuple):
    """The candidates of one device.

    Attributes:
        vectors: their vectors, [C, d].
        items: their items, [C]; negative for none.
        log_q: logarithms of the numbers of times that they are expected among all devices'
            candidates, [C]; +∞ for none.
    """

    vectors: Float[Array, "C d"]
    items: Int[Array, " C"]
    log_q: Float[Array, " C"]


def softmax_loss(
    tokens: Float[Array, "T d"],
    targets: Int[Array, " T"],
    own: Float[Array, " T"] | None,
    candidates: Candidates,
    temperature: float,
    axes: tuple[str, ...],
) -> Float[Array, " T"]:
    """The cross-entropy of the target of each of this device's tokens; inside a `jax.shard_map`.

    Each device has the scores of all devices' tokens with its own candidates: tokens are sent, and
    not the items, which may be many more. With all items as candidates it is exact. With negatives,
    subtracting the logarithm of how often one is expected makes the sum over candidates an estimate
    of that over all items (Yi et al., 2019, "Sampling-Bias-Corrected Neural Modeling for Large
    Corpus Item Recommendations", section 4.1). Negatives that are a token's own target are left
    out.

    Args:
        tokens: vectors of this device's tokens, [T, d].
        targets: item that follows each, [T]; negative for none, whose loss has no meaning.
        own: scores of the targets over the temperature; None if they are among the candidates.
        candidates: candidates of this device.
        temperature: number that scores are divided by.
        axes: names of the mesh axes.
    """
    first = jax.lax.axis_index(axes) * len(tokens)
    every = jax.lax.all_gather(tokens, axes, tiled=True)
    wanted = jax.lax.all_gather(targets, axes, tiled=True)
    count, size = len(every), max(1, _CHUNK // max(1, len(candidates.items)))
    chunks = next(n for n in range(-(-count // size), count + 1) if count % n == 0)

    def of_chunk(part: tuple[Array, Array]) -> tuple[Array, Array]:
        vectors, target = part
        scores = jnp.matmul(vectors, candidates.vectors.T, precision=jax.lax.Precision.HIGHEST)
        is_target = target[:, None] == candidates.items
        is_none = (candidates.items < 0) | (is_target if own is not None else False)
        logits = jnp.where(is_none, _NONE, scores / temperature - candidates.log_q)
        of_target = jnp.sum(jnp.where(is_target & ~is_none, logits, 0), axis=1)
        return jax.nn.logsumexp(logits, axis=1), of_target

    parts = every.reshape(chunks, -1, every.shape[1]), wanted.reshape(chunks, -1)
    if chunks > 1:  # scores that are kept for the way back are no more than those of a chunk
        of_chunk = jax.checkpoint(of_chunk)
    logs, of_target = (x.reshape(-1) for x in jax.lax.map(of_chunk, parts))
    # logsumexp over the devices. Each device's loss is of its own tokens alone, so what others say
    # of a partial sum is added up on the way back, as `psum` does.
    most = jax.lax.pmax(jax.lax.stop_gradient(logs), axes)
    total = jnp.log(jax.lax.psum(jnp.exp(logs - most), axes)) + most
    here = jax.lax.dynamic_slice_in_dim(total, first, len(tokens))
    if own is not None:
        return jnp.logaddexp(here, own) - own
    of_target = jax.lax.psum(of_target, axes)
    return here - jax.lax.dynamic_slice_in_dim(of_target, first, len(tokens))

"""The loss of a retrieval model: each user's own item among the items of the batch and others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def sampled_softmax(
    scores: Float[Array, "b C"],
    own: Int[Array, " b"],
    items: Int[Array, " C"],
    log_q: Float[Array, " C"],
) -> Float[Array, " b"]:
    """The cross-entropy of each user's own item among all candidates.

    A frequent item is a candidate of many batches, and would be punished as often for not being
    chosen. Subtracting the logarithm of its sampling probability turns the sum over candidates into
    an estimate, but for a constant factor, of that over all items (Yi et al., 2019,
    "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", section 4.1).
    Each candidate has the probability of the sampler that drew it.

    Args:
        scores: scores of b users and C candidates over the temperature, [b, C].
        own: column of each user's own item, [b].
        items: number of each candidate's item, [C]. Other candidates with a user's own item, which
            are accidental hits, are left out for this user.
        log_q: logarithm of each candidate's sampling probability, [C].
    """
    hits: Bool[Array, "b C"] = items[own][:, None] == items[None]
    accidental = hits & (jnp.arange(len(items)) != own[:, None])
    logits = jnp.where(accidental, -jnp.inf, scores - log_q)
    own_logits = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - own_logits

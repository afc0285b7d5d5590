"""The weights of several labels in the loss of a batch, some of which an example may lack.

The loss is Σₕ λₕ Σᵢ wᵢ mᵢₕ ℓᵢₕ / Σᵢ wᵢ mᵢₕ: for each label h with its weight λₕ, the mean of its
losses ℓᵢₕ over the examples i that have it (mᵢₕ is 1, otherwise 0), by their weights wᵢ. A label
that no example of the batch has adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool

from dlrm_jax.data.batches import Batch


def by_label(batch: Batch, label_weights: Sequence[float]) -> tuple[Batch, Bool[Array, ""]]:
    """A batch whose loss is the sum of λₕ wᵢ mᵢₕ / Σᵢ wᵢ mᵢₕ times that of each label.

    Args:
        batch: whole batch, [B] examples or [A, B/A] in micro-batches, labels [..., H].
        label_weights: weight of each label, H of them.

    Returns:
        The batch with these numbers as ``sample_weights``, [..., H], and 0 for missing labels; and
        whether an example has a weight at all.
    """
    here = ~jnp.isnan(batch.labels)
    weights = jnp.where(here, batch.sample_weights[..., None], 0)
    # Over all examples: on a mesh, a collective of H numbers before those of the model.
    sums = jnp.sum(weights, axis=tuple(range(weights.ndim - 1)))
    factors = jnp.asarray(label_weights, sums.dtype) / jnp.where(sums > 0, sums, 1)
    labels = jnp.where(here, batch.labels, 0)
    return batch._replace(labels=labels, sample_weights=weights * factors), jnp.any(sums > 0)

"""Towers of models of several labels: one logit for each label."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import hidden
from dlrm_jax.models.mlp import MLP, at_least_float32


class Towers(nnx.Module):
    """An MLP for each label, which ends in its logit.

    Args:
        width: width of their inputs.
        labels: names of the labels, H of them; none for one without a name.
        top_mlp: widths of each tower; the last is 1, the logit.
        rngs: random number generators of the initial values.
        dtype: type in which they compute.
    """

    def __init__(
        self,
        width: int,
        labels: Sequence[str],
        top_mlp: Sequence[int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        widths = (width, *hidden(top_mlp), 1)
        self.towers = nnx.List(
            MLP(widths, last_relu=False, rngs=rngs, dtype=dtype) for _ in range(count(labels))
        )

    def __call__(self, inputs: Sequence[Float[Array, "B W"]]) -> list[Float[Array, " B"]]:
        """Returns the logits of each label, of one input for each."""
        pairs = zip(self.towers, inputs, strict=True)
        return [at_least_float32(tower(x)[:, 0]) for tower, x in pairs]


def count(labels: Sequence[str]) -> int:
    """H, the number of labels: without names there is one."""
    return max(1, len(labels))


def joined(logits: Sequence[Float[Array, " B"]]) -> Float[Array, "B *_"]:
    """Logits of all labels, [B, H]; [B] if there is one label."""
    return logits[0] if len(logits) == 1 else jnp.stack(logits, axis=1)

"""Deep Interest Network (arXiv 1706.06978): attention of a target over a history."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import (
    VECTOR,
    Field,
    Model,
    Read,
    Vectors,
    concatenated_width,
    hidden,
    split_histories,
)
from dlrm_jax.models.mlp import MLP, at_least_float32


class DIN(Model):
    """An MLP over dense features, vectors, and histories weighted by attention to a target.

    Each history e₁, e₂, … becomes Σⱼ a(eⱼ, v) eⱼ, where v is the target's vector and a an MLP over
    eⱼ, v, eⱼ - v and eⱼ ∘ v. As in equation 3 of the paper, the weights aren't normalized. Absent
    ids, whose vectors are zero, add nothing. ReLUs replace the paper's Dice.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs; those with several ids are histories.
        top_mlp: widths of the MLP; the last is 1, the logit.
        target: name of the field that attends, which has one id.
        attention: hidden widths of a.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute.

    Raises:
        UserError: there is no history, or no such target of the same width.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """One vector, or a sequence of vectors for a field with several ids."""
        return (Read(sequence=True),) if field.max_ids > 1 else (VECTOR,)

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        target: str,
        attention: tuple[int, ...] = (32,),
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        widths, histories = split_histories("din", fields, target)
        self.names = tuple(widths)
        self.histories = tuple(field.name for field in histories)
        self.target = target
        make = functools.partial(MLP, last_relu=False, rngs=rngs, dtype=dtype)
        attending = (4 * widths[target], *attention, 1)
        self.attention = nnx.Dict({name: make(attending, plain=True) for name in self.histories})
        self.top = make((concatenated_width(dense_features, fields), *hidden(top_mlp), 1))

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        target = vectors[self.target]
        with jax.named_scope("interaction"):
            attended = [self._attend(name, vectors[name], target) for name in self.histories]
        inputs = [dense, *(vectors[name] for name in self.names), *attended]
        with jax.named_scope("top_mlp"):
            return at_least_float32(self.top(jnp.concatenate(inputs, axis=1))[:, 0])

    def _attend(
        self, name: str, history: Float[Array, "B L d"], target: Float[Array, "B d"]
    ) -> Float[Array, "B d"]:
        wide = jnp.broadcast_to(target[:, None], history.shape)
        inputs = [history, wide, history - wide, history * wide]
        flat = jnp.concatenate(inputs, axis=2).reshape(-1, 4 * target.shape[1])
        weights = self.attention[name](flat).reshape(history.shape[:2])
        return jnp.einsum("bl,bld->bd", weights.astype(history.dtype), history)

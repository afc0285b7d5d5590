"""Losses that look at the members of an `Ensemble`: functions of means over the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.ensemble import Ensemble
from dlrm_jax.models.mlp import at_least_float32


@dataclasses.dataclass(frozen=True)
class MemberLoss:
    """A loss of a batch, ``combined`` of the means of its samples' terms.

    Attributes:
        name: name of the loss.
        terms: function of the logits of P members, [B, P], and the labels, [B]; it gives terms of
            each sample, [B, 1 + P], which depend on that sample alone: of the ensemble, then of
            each member.
        combined: function of the means of the terms, [1 + P]; it gives the loss.
    """

    name: str
    terms: Callable[[Float[Array, "B P"], Float[Array, " B"]], Float[Array, "B T"]]
    combined: Callable[[Float[Array, " T"]], Float[Array, ""]]

    def check(self, members: int) -> None:
        """Checks that a model has members to learn from.

        Args:
            members: number of members of the model, 0 if it isn't an `Ensemble`.

        Raises:
            UserError: there are fewer than two.
        """
        if members < 2:
            raise UserError(
                f"loss: {self.name} needs a model of two or more members, such as fcn or finalnet "
                f"with two blocks; this one has {members or 'none'}"
            )

    def share(
        self,
        members: Float[Array, "b P"],
        labels: Float[Array, " b"],
        weights: Float[Array, " b"],
        axes: tuple[str, ...],
    ) -> Float[Array, ""]:
        """A device's share of the loss times the sum of all weights, in a `jax.shard_map`.

        Devices need the means of the whole batch, and each differentiates the terms of its own
        samples: by the chain rule, times the derivatives of the loss by the means.

        Args:
            members: logits of each member.
            labels: labels.
            weights: weights of the samples.
            axes: names of the mesh axes that the batch is split over.
        """
        terms = self.terms(at_least_float32(members), labels)
        weight = jnp.sum(weights, dtype=terms.dtype)
        own = weights @ terms
        sums = jnp.append(jax.lax.stop_gradient(own), weight)
        sums = jax.lax.psum(sums, axes)
        value, slopes = jax.value_and_grad(self.combined)(sums[:-1] / sums[-1])
        linear = own @ slopes
        return weight * value + linear - jax.lax.stop_gradient(linear)


def member_count(model: nnx.Module) -> int:
    """The number of members of the ensemble that a model is, or has inside; 0 if there is none."""
    found = [part.size for _, part in nnx.iter_modules(model) if isinstance(part, Ensemble)]
    return found[0] if found else 0


def _tri_bce_terms(members: Float[Array, "B P"], labels: Float[Array, " B"]) -> Array:
    whole = jnp.mean(members, axis=1, keepdims=True)
    logits = jnp.concatenate([whole, members], axis=1)
    return optax.sigmoid_binary_cross_entropy(logits, labels[:, None])


def _tri_bce(means: Float[Array, " T"]) -> Float[Array, ""]:
    whole, members = means[0], means[1:]
    return whole + jnp.sum(jax.nn.relu(members - whole) * members)


TRI_BCE = MemberLoss("tri_bce", _tri_bce_terms, _tri_bce)
"""L + Σₚ max(0, Lₚ - L) Lₚ, of the cross-entropies of the whole and of each member p.

A member that is worse than the whole learns by itself, too: Tri-BCE of FCN (arXiv 2407.13349). As
in the authors' code, the weights max(0, Lₚ - L) are differentiated with the rest.
"""


def _distillation_terms(members: Float[Array, "B P"], labels: Float[Array, " B"]) -> Array:
    whole = jnp.mean(members, axis=1, keepdims=True)
    taught = jax.nn.sigmoid(jax.lax.stop_gradient(whole))
    logits = jnp.concatenate([whole, members], axis=1)
    targets = jnp.concatenate([labels[:, None], *[taught] * members.shape[1]], axis=1)
    return optax.sigmoid_binary_cross_entropy(logits, targets)


SELF_DISTILLATION = MemberLoss("self_distillation", _distillation_terms, jnp.sum)
"""L + Σₚ Cₚ, with Cₚ the cross-entropy of member p to the prediction of the whole, a constant.

FinalNet (SIGIR 2023, doi 10.1145/3539618.3591988), as in FuxiCTR.
"""

MEMBER_LOSSES: dict[str, MemberLoss] = {x.name: x for x in (TRI_BCE, SELF_DISTILLATION)}

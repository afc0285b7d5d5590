"""Losses that compare the samples of a group, such as the items of a request, within a batch.

Samples of a group lie side by side. A group that a batch cuts off counts as one in each batch.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Ranked(NamedTuple):
    """The loss of a whole batch in shares of its samples.

    Attributes:
        losses: shares of the sum of all losses, [B].
        weights: shares of the sum of their weights, [B]. The loss of the batch is the first sum
            over the second one, and 0 if nothing can be compared.
        gradients: derivative of the first sum by each logit, [B].
    """

    losses: Float[Array, " B"]
    weights: Float[Array, " B"]
    gradients: Float[Array, " B"]


@dataclasses.dataclass(frozen=True)
class RankingLoss(abc.ABC):
    """A loss of groups.

    Attributes:
        column: column whose values are the groups.
    """

    column: str
    kind: ClassVar[str] = ""

    @abc.abstractmethod
    def __call__(
        self,
        logits: Float[Array, " B"],
        labels: Float[Array, " B"],
        weights: Float[Array, " B"],
        groups: Int[Array, " B"],
    ) -> Ranked:
        """The loss of all samples of a batch.

        Args:
            logits: logits.
            labels: 0 or 1, or any grades of relevance of 0 or more.
            weights: weights of the samples.
            groups: numbers of the groups; equal ones lie side by side.
        """


class Pairwise(RankingLoss):
    """Logistic loss of each pair of a group with different labels (RankNet, Burges et al., 2005).

    With zᵢ the logit of the sample with the higher label, a pair costs log(1 + exp(zⱼ - zᵢ)). Its
    weight is the product of both samples' weights.
    """

    kind = "pairwise"

    def __call__(
        self,
        logits: Float[Array, " B"],
        labels: Float[Array, " B"],
        weights: Float[Array, " B"],
        groups: Int[Array, " B"],
    ) -> Ranked:
        """See `RankingLoss`; each distance between two samples of a group in its turn."""
        places = jnp.arange(len(logits))
        starts = _starts(groups)
        largest = jnp.max(places - starts)

        def add(carry: tuple[Array, Ranked]) -> tuple[Array, Ranked]:
            distance, (losses, totals, gradients) = carry

            def other(x: Array) -> Array:
                return jnp.roll(x, distance)

            # Of each sample and the one so many places before it.
            sign = jnp.sign(labels - other(labels))
            weight = jnp.where(places - starts >= distance, weights * other(weights), 0)
            weight = jnp.where(sign == 0, 0, weight)
            margin = sign * (logits - other(logits))
            slope = -weight * sign * jax.nn.sigmoid(-margin)
            return distance + 1, Ranked(
                losses + weight * jax.nn.softplus(-margin),
                totals + weight,
                gradients + slope - jnp.roll(slope, -distance),
            )

        zero = jnp.zeros_like(logits)
        first = jnp.ones((), largest.dtype), Ranked(zero, zero, zero)
        return jax.lax.while_loop(lambda carry: carry[0] <= largest, add, first)[1]


class Listwise(RankingLoss):
    """Softmax cross-entropy of each positive sample within its group (ListNet, Cao et al., 2007).

    A sample of label yᵢ and weight wᵢ costs log(Σⱼ wⱼ exp(zⱼ)) - zᵢ, the sum over its group, and
    this counts with the weight yᵢ wᵢ.
    """

    kind = "listwise"

    def __call__(
        self,
        logits: Float[Array, " B"],
        labels: Float[Array, " B"],
        weights: Float[Array, " B"],
        groups: Int[Array, " B"],
    ) -> Ranked:
        """See `RankingLoss`."""
        count = len(logits)

        def total(x: Array) -> Array:
            return jax.ops.segment_sum(x, numbers, count, indices_are_sorted=True)[numbers]

        numbers = jnp.cumsum(_begins(groups)) - 1
        counted = weights > 0
        there = jnp.where(counted, logits, -jnp.inf)
        top = jax.ops.segment_max(there, numbers, count, indices_are_sorted=True)[numbers]
        top = jnp.where(jnp.isfinite(top), top, 0)
        each = jnp.where(counted, weights * jnp.exp(logits - top), 0)
        sums = total(each)
        relevant = labels * weights
        share = each / jnp.where(sums > 0, sums, 1)
        log_sum = top + jnp.log(jnp.where(sums > 0, sums, 1))
        losses = jnp.where(relevant > 0, relevant * (log_sum - logits), 0)
        return Ranked(losses, relevant, total(relevant) * share - relevant)


RANKING_LOSSES: dict[str, type[RankingLoss]] = {x.kind: x for x in (Pairwise, Listwise)}


def _starts(groups: Int[Array, " B"]) -> Int[Array, " B"]:
    """The place of the first sample of each sample's group."""
    return jax.lax.cummax(jnp.where(_begins(groups), jnp.arange(len(groups)), 0))


def _begins(groups: Int[Array, " B"]) -> Bool[Array, " B"]:
    """Whether each sample is the first of its group."""
    return jnp.concatenate([jnp.ones(1, bool), groups[1:] != groups[:-1]])

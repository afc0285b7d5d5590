"""The arrays of sharded tables, and what passes between the parts of a step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError

Leaf = Any
"""An array or, where JAX maps over a tree, what stands for one: a shape, a sharding, a spec."""

_pytree = jax.tree_util.register_dataclass


@_pytree
@dataclasses.dataclass(frozen=True)
class EmbeddingState:
    """All arrays of the tables, by the name of their slab (see `layout`).

    Attributes:
        tables: the slabs, in their storage dtype, see `storage_dtype`.
        slots: optimizer state of each slab, by optimizer slot.
    """

    tables: dict[str, Leaf] | Leaf
    slots: dict[str, dict[str, Leaf]] | Leaf


@_pytree
@dataclasses.dataclass(frozen=True)
class Residuals:
    """Arrays that `lookup` keeps for `send_cotangents`; one item per block.

    Attributes:
        rows: row numbers in the slab, at its owner, [D, M, N, T, L].
        id_weights: weight of each of these rows, [D, M, N, T, L]; None without weights.
        denominators: divisors of the sums, [B], by lookup with mean pooling.
    """

    rows: tuple[Leaf, ...] | Leaf
    id_weights: tuple[Leaf, ...] | Leaf | None
    denominators: dict[str, Leaf] | Leaf


@_pytree
@dataclasses.dataclass(frozen=True)
class SparseCotangents:
    """Cotangents of the pooled vectors beside their rows, at the rows' owners.

    Attributes:
        rows: rows of `Residuals`, of the blocks that are trained.
        id_weights: weights of these rows, as in `Residuals`.
        cotangents: cotangent of each bag, [D, M, N, T, d].
    """

    rows: tuple[Leaf, ...] | Leaf
    id_weights: tuple[Leaf, ...] | Leaf | None
    cotangents: tuple[Leaf, ...] | Leaf


@_pytree
@dataclasses.dataclass(frozen=True)
class RowGradients:
    """Gradients of the touched rows of each slab, by slab name.

    Attributes:
        bags: items of rows [M · N, T, L], numbers within the owner's slab and past its end for
            "no row"; the weight of each or None; and gradients [M · N, T, d], each that of L
            rows, times their weights.
        summed: each row comes once, its gradients summed: bags of one row without weights.
    """

    bags: dict[str, tuple[tuple[Leaf, Leaf | None, Leaf], ...]] | Leaf
    summed: bool = dataclasses.field(metadata={"static": True})

    def squared_norm(self) -> Float[Array, ""]:
        """The sum of squares over all rows of all tables, for clipping by global norm."""
        if not self.summed:
            raise UserError("a norm needs coalesce(..., sum_duplicates=True)")
        gradients = (g for items in self.bags.values() for _, _, g in items)
        return sum((jnp.sum(jnp.square(g)) for g in gradients), jnp.zeros(()))

    def scaled(self, factor: Float[Array, ""]) -> RowGradients:
        """The gradients times a number, in their own dtype."""
        bags = {
            name: tuple((rows, w, (g * factor).astype(g.dtype)) for rows, w, g in items)
            for name, items in self.bags.items()
        }
        return dataclasses.replace(self, bags=bags)

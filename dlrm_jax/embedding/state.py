"""The arrays of all tables, and the arrays that one method of a step passes to the next."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.embedding.row_update import RowOrder
from dlrm_jax.errors import UserError

Leaf = Any
"""An array or, where JAX maps over a tree, its placeholder: a shape, a sharding, a spec."""

_pytree = jax.tree_util.register_dataclass


@_pytree
@dataclasses.dataclass(frozen=True)
class EmbeddingState:
    """All arrays of the tables, by slab name, see `slab`.

    To change arrays, use `dataclasses.replace`, which keeps the layout: to JAX, states with other
    layouts are trees of other structures.

    Attributes:
        tables: table of each slab, [M · R, d] or [R, d], in its storage dtype, see `storage_dtype`.
        slots: optimizer slots of each slab by name, with one number per row, per element, or one.
        layout: key of the places of rows in the arrays, see `layout.Layout.key`; empty if unknown.
    """

    tables: dict[str, Leaf] | Leaf
    slots: dict[str, dict[str, Leaf]] | Leaf
    layout: str = dataclasses.field(default="", metadata={"static": True})


@_pytree
@dataclasses.dataclass(frozen=True)
class Round:
    """The rows of a fully sharded slab that come in a round, see `owner_exchange`.

    Attributes:
        begin: places in the request of the first row that each partner is asked for, [D, M, n];
            the others follow, up to ``next``.
        slots: slots in the messages of the second stage of the rows that each partner of the first
            one asks for, [D, M, n, C]; past their end for "no row". None without a second stage.
        order: order of ``slots`` in which equal ones lie side by side, [D, M, n C]; None if it
            isn't known.
        rows: rows that this owner is asked for, by partner of the last stage, [D, M, n2, C2]; R for
            "no row".
        next: places in the request of the first rows of the next round, [D, M, n].
        more: whether there is a next round, [D, M]; None if no ids need one.
    """

    begin: Leaf
    slots: Leaf | None
    order: Leaf | None
    rows: Leaf
    next: Leaf
    more: Leaf | None


@_pytree
@dataclasses.dataclass(frozen=True)
class RowRequests:
    """The different rows of a fully sharded slab that one device's samples read, by owner.

    Attributes:
        rows: numbers of the rows at their owners, [D, M, K], those of the first owner first, each
            owner's in ascending order; then numbers past the slab's end.
        starts: places in ``rows`` where the rows of each of the S owners begin, and where the last
            end, [D, M, S + 1].
        order: order of the K ids in which those of a row lie side by side, [D, M, K]; None if it
            isn't known.
        first: first round of their exchange; None before the owners are asked.
    """

    rows: Leaf
    starts: Leaf
    order: Leaf | None = None
    first: Round | Leaf | None = None


@_pytree
@dataclasses.dataclass(frozen=True)
class RoutedIds:
    """A batch's ids at the owners of their rows; ``rows`` and ``id_weights`` by block.

    Attributes:
        rows: row numbers in the slab, at the owners, [D, M, N, T, L]; of a fully sharded slab,
            places in the requests, at the samples.
        id_weights: id weight of each of these rows, [D, M, N, T, L]; None without.
        denominators: divisors of the sums, [B], by lookup with mean pooling.
        unknown: whether a bag has an id out of range, [B], by lookup; of each id without pooling,
            [B, L].
        requests: requests of the fully sharded slabs, by the name of the first slab that asks for
            these rows: were there two of them, XLA couldn't see that they are equal.
        routing: key of the collection that routed them, see `routing_key`.
    """

    rows: tuple[Leaf, ...] | Leaf
    id_weights: tuple[Leaf, ...] | Leaf | None
    denominators: dict[str, Leaf] | Leaf
    unknown: dict[str, Leaf] | Leaf
    requests: dict[str, RowRequests] | Leaf
    routing: str = dataclasses.field(metadata={"static": True})


@_pytree
@dataclasses.dataclass(frozen=True)
class SparseCotangents:
    """Cotangents of the pooled vectors and the rows that they belong to, at the owners.

    Attributes:
        rows: row numbers of the blocks that are trained, [D, M, N, T, L]; without those of fully
            sharded slabs.
        id_weights: id weight of each of these rows, [D, M, N, T, L]; None without.
        cotangents: cotangent of each bag, [D, M, N, T, d].
        requests: requests of each fully sharded slab, by name, and the gradients of their rows,
            [D, M, K, d], which are still at the samples.
    """

    rows: tuple[Leaf, ...] | Leaf
    id_weights: tuple[Leaf, ...] | Leaf | None
    cotangents: tuple[Leaf, ...] | Leaf
    requests: dict[str, tuple[RowRequests, Leaf]] | Leaf = dataclasses.field(default_factory=dict)


@_pytree
@dataclasses.dataclass(frozen=True)
class RowPenalty:
    """The L2 penalty of fully sharded tables, λ/2 Σ w², whose gradient `apply` adds, see `l2`.

    Attributes:
        strength: factor λ, a scalar.
        whole_tables: whether all rows have it, instead of the touched ones.
    """

    strength: Leaf
    whole_tables: bool = dataclasses.field(metadata={"static": True})


@_pytree
@dataclasses.dataclass(frozen=True)
class KnownRows:
    """What is known of the rows of a slab's gradients, without arrays.

    Attributes:
        order: see `RowOrder`; "any" if the gradients of equal rows may not be summed.
    """

    order: RowOrder = dataclasses.field(metadata={"static": True})


@_pytree
@dataclasses.dataclass(frozen=True)
class RowGradients:
    """Gradients of the touched rows of each slab, by slab name.

    Attributes:
        blocks: rows [M · N, T, L], id weight of each or None, and gradients of bags
            [M · N, T, d], by block. A row is a number in the owner's slab, or past its end for "no
            row"; its gradient is that of its bag times its id weight.
        known: knowledge of these rows, by slab name.
        summed: whether each row comes once with its summed gradient, as a bag of one row.
        requests: requests of each fully sharded slab, by name, and the gradients of their rows,
            [D, M, K, d]: `apply` sends them to the owners, who sum them.
        squares: sum of squares over the summed gradients of fully sharded slabs, a scalar; None
            unless ``summed``.
        penalty: penalty of the rows of fully sharded slabs; None for none.
    """

    blocks: dict[str, tuple[tuple[Leaf, Leaf | None, Leaf], ...]] | Leaf
    known: dict[str, KnownRows] | Leaf
    summed: bool = dataclasses.field(metadata={"static": True})
    requests: dict[str, tuple[RowRequests, Leaf]] | Leaf = dataclasses.field(default_factory=dict)
    squares: Leaf | None = None
    penalty: RowPenalty | Leaf | None = None

    def squared_norm(self) -> Float[Array, ""]:
        """The sum of squares over all rows of all tables, for clipping by global norm."""
        if not self.summed:
            raise UserError("a norm needs coalesce(..., sum_duplicates=True)")
        gradients = (g for items in self.blocks.values() for _, _, g in items)
        others = jnp.zeros(()) if self.squares is None else self.squares
        return sum((jnp.sum(jnp.square(g)) for g in gradients), others)

    def scaled(self, factor: Float[Array, ""]) -> RowGradients:
        """The gradients times a number, in their own dtype."""
        blocks = {
            name: tuple((rows, w, (g * factor).astype(g.dtype)) for rows, w, g in items)
            for name, items in self.blocks.items()
        }
        requests = {
            name: (rows, (g * factor).astype(g.dtype)) for name, (rows, g) in self.requests.items()
        }
        squares = None if self.squares is None else self.squares * jnp.square(factor)
        penalty = self.penalty
        if penalty is not None:
            penalty = dataclasses.replace(penalty, strength=penalty.strength * factor)
        return RowGradients(blocks, self.known, self.summed, requests, squares, penalty)

"""The fully sharded slabs' part of `PerDevice`'s methods, on one device inside `jax.shard_map`.

To the other code, a fully sharded slab is a small replicated one: the buffer of the rows that this
device's samples read. Only here, in `row_requests` and in `owner_exchange` have rows an
owner.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding import exchange, row_gradients, row_requests
from dlrm_jax.embedding.bag_cotangents import BlockCotangents, expand, one_by_one
from dlrm_jax.embedding.layout import Block, Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.owner_exchange import OwnerExchange, stages
from dlrm_jax.embedding.reshard import slot_ndims
from dlrm_jax.embedding.row_penalty import numbers_of_all, penalized
from dlrm_jax.embedding.row_sums import RowSums, order_of_sums, sum_touched
from dlrm_jax.embedding.row_update import RowOrder, known
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import RoutedIds, RowPenalty, RowRequests

Sums = dict[str, tuple[RowRequests, Array]]
"""Requests of each slab, by name, and the gradients of their rows, summed over the samples of this
device: [1, 1, ...], or [A, 1, 1, ...] of A micro-batches."""

Update = Callable[[Slab, Array, dict[str, Array], Any, RowOrder], tuple[Array, dict[str, Array]]]
"""Function of a slab, its table, its optimizer slots, the gradients of rows, and what is known of
these rows: it returns the updated table and slots."""


@dataclasses.dataclass(frozen=True, eq=False)
class FullySharded:
    """The fully sharded slabs of a layout.

    Attributes:
        axes: axes of the mesh.
        layout: layout of all slabs.
        comm_dtype: dtype of rows and gradients between devices; None keeps their dtype.
        native: whether native kernels may be used.
        row_sums: way to sum gradients of equal rows, see `backend.Backend`.
    """

    axes: MeshAxes
    layout: Layout
    comm_dtype: str | None
    native: bool
    row_sums: RowSums

    @functools.cached_property
    def slabs(self) -> dict[str, Slab]:
        """These slabs, by name."""
        return {slab.name: slab for slab in self.layout.slabs if slab.fully_sharded}

    def _blocks(self, slab: Slab) -> dict[int, Block]:
        """The blocks that read a slab, by number."""
        return {i: block for i, block in enumerate(self.layout.blocks) if block.slab is slab}

    def request(
        self, ids: Int[Array, "b C2"]
    ) -> tuple[dict[str, RowRequests], dict[int, Int[Array, "1 b _ _"]]]:
        """Asks the owners for the rows that these samples read.

        Args:
            ids: ids after `exchange.map_ids`.

        Returns:
            The requests, by the name of the first slab that asks for these rows, see
            `Layout.askers`; and for each block, by number, the places in the buffer of `fetch` that
            its bag positions read, [1, b, T, L].
        """
        requests, places = {}, {}
        for name, slab in self.slabs.items():
            own = self._blocks(slab)
            if name != (asker := self.layout.askers[name]):
                of_asker = self._blocks(self.slabs[asker])
                places |= {i: places[j] for i, j in zip(own, of_asker, strict=True)}
                continue
            exchanged = self._exchange(slab, len(ids) * sum(x.column.size for x in own.values()))
            partners = exchanged.stages[0].partners
            asked, found = row_requests.request(
                slab, partners, list(own.values()), ids, self.native
            )
            requests[name] = exchanged.ask(asked)
            places |= {i: x[None] for i, x in zip(own, found, strict=True)}
        return requests, places

    def fetch(
        self, tables: Mapping[str, Shaped[Array, "_ _"]], requests: Mapping[str, RowRequests]
    ) -> dict[str, Shaped[Array, "_ _"]]:
        """The buffer of each slab: the rows that the owners were asked for, by slab name.

        Args:
            tables: rows of this device, by slab name.
            requests: first result of `request`.
        """
        found = {}
        for name, slab in self.slabs.items():
            asked = requests[self.layout.askers[name]]
            found[name] = self._exchange(slab, asked.rows.size).fetch(tables[name], asked)
        return found

    def sums(self, routed: RoutedIds, of_bags: Sequence[Float[Array, "b _"]]) -> Sums:
        """The gradient of each row of the buffers, summed over this device's samples.

        Args:
            routed: result of `PerDevice.route`.
            of_bags: cotangents of all bags, in the order of the bags.
        """
        weights, found = routed.id_weights, {}
        for name, slab in self.slabs.items():
            if slab.optimizer:
                items = [
                    (
                        routed.rows[i][0, 0],
                        None if weights is None else weights[i][0, 0],
                        exchange.spread(block, of_bags)[0],
                    )
                    for i, block in self._blocks(slab).items()
                ]
                asked = routed.requests[self.layout.askers[name]]
                order = None if asked.order is None else asked.order[0, 0]
                sums = row_requests.sum_by_row(asked.rows.size, items, self.row_sums, order)
                found[name] = asked, sums[None, None]
        return found

    def merge(self, sums: Sums) -> Sums:
        """Makes one request for each slab of those of stacked micro-batches."""
        found = {}
        for name, (asked, gradients) in sums.items():
            if asked.rows.ndim > 3:
                own = RowRequests(asked.rows[:, 0, 0], asked.starts[:, 0, 0])
                slab = self.slabs[name]
                asked, gradients = row_requests.merge(
                    slab, own, gradients[:, 0, 0], self.native, self.row_sums
                )
                asked = self._exchange(slab, asked.rows.size).ask(asked)
                asked, gradients = jax.tree.map(lambda x: x[None, None], (asked, gradients))
            found[name] = asked, gradients
        return found

    def squares(
        self,
        sums: Sums,
        tables: Mapping[str, Shaped[Array, "_ _"]] | None = None,
        penalty: RowPenalty | None = None,
    ) -> Float[Array, ""]:
        """The sum of squares over the gradients that are summed over all samples.

        Args:
            sums: gradients that devices have for the owners.
            tables: rows of this device, by slab name; only a penalty needs them.
            penalty: penalty whose gradient is added; None for none.
        """
        total = jnp.zeros(())
        for name, (_, gradients) in sums.items():

            def add(items: Sequence[BlockCotangents], order: RowOrder, total: Array) -> Array:
                del order
                return total + jnp.sum(jnp.square(expand(items)[1]))

            def table_of(_: Array, name: str = name) -> Array:
                assert tables is not None
                return tables[name]

            start = jax.lax.pcast(jnp.zeros((), gradients.dtype), self.axes.split, to="varying")
            total += self._summed(name, sums, True, penalty, table_of, add, start)
        return jax.lax.psum(total, self.axes.split)

    def apply(
        self,
        name: str,
        table: Array,
        slots: dict[str, Array],
        sums: Sums,
        update: Update,
        kernel_sums: bool,
        penalty: RowPenalty | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Updates the rows of a slab that this device owns, round by round.

        Args:
            name: name of the slab.
            table: rows of this device.
            slots: optimizer slots of these rows.
            sums: gradients that devices have for the owners.
            update: function that updates rows.
            kernel_sums: whether it sums the gradients of equal rows itself.
            penalty: penalty whose gradient is added; None for none.
        """
        ndims, slab = slot_ndims(self.slabs[name]), self.slabs[name]
        # Every round is a part of one update: each begins with the scalars from before it.
        before = {name: slot for name, slot in slots.items() if ndims[name] == 0}

        def receive(items: Sequence[BlockCotangents], order: RowOrder, carry: Any) -> Any:
            table, by_row, _ = carry
            table, found = update(slab, table, by_row | before, items, order)
            return table, found, {name: found.pop(name) for name in before}

        by_row = {name: slot for name, slot in slots.items() if ndims[name]}
        always = None if kernel_sums else False
        carry = table, by_row, before
        table, by_row, scalars = self._summed(
            name, sums, always, penalty, lambda carry: carry[0], receive, carry
        )
        return table, by_row | scalars

    def _summed(
        self,
        name: str,
        sums: Sums,
        always: bool | None,
        penalty: RowPenalty | None,
        table_of: Callable[[Any], Array],
        receive: Callable[[Sequence[BlockCotangents], RowOrder, Any], Any],
        carry: Any,
    ) -> Any:
        """Sends a slab's gradients to the owners, who sum them by row.

        Args:
            name: name of the slab.
            sums: gradients that devices have for the owners.
            always: whether to sum even if the optimizer doesn't need it; None for no sums.
            penalty: penalty whose gradient is added to sums; None for none.
            table_of: function of the carry that returns the table before these rows' update.
            receive: function of the gradients, of what is known of their rows and of the carry,
                called for each round, or once if all rows have the penalty; it returns the next
                carry.
            carry: arrays that differ by device.
        """
        slab, (asked, gradients) = self.slabs[name], sums[name]
        # About as many rows come as this device has ids. A message has room for more, and its size
        # must not decide the order of sums.
        ids = asked.rows.size

        def of_round(rows: Array, gradients: Array, carry: Any) -> Any:
            items, order = one_by_one((rows, gradients)), "any"
            if penalty is not None:
                found, order = row_gradients.sum_rows(slab, items, True, ids, self.row_sums)
                items = penalized(slab, table_of(carry), expand(found), penalty.strength)
            elif always is not None:
                items, order = row_gradients.sum_rows(slab, items, always, ids, self.row_sums)
            return receive(items, order, carry)

        def added(rows: Array, gradients: Array, totals: Array) -> Array:
            if self.row_sums == "scatter":
                return totals.at[rows].add(gradients, mode="drop")
            items = one_by_one((rows, gradients))
            rows, gradients = sum_touched(len(totals), items, self.row_sums)
            return totals.at[rows].add(gradients, **known(order_of_sums(self.row_sums)))

        send = self._exchange(slab, ids).send_sums
        asked, gradients = jax.tree.map(lambda x: x[0, 0], (asked, gradients))
        if penalty is None or not penalty.whole_tables:
            return send(asked, gradients, of_round, carry)
        totals = jnp.zeros((slab.rows, gradients.shape[1]), gradients.dtype)
        totals = jax.lax.pcast(totals, self.axes.split, to="varying")
        totals = send(asked, gradients, added, totals)
        rows = numbers_of_all(slab, jax.lax.axis_index(self.axes.split))
        items = penalized(slab, table_of(carry), (rows, totals), penalty.strength)
        return receive(items, "all", carry)

    def _exchange(self, slab: Slab, ids: int) -> OwnerExchange:
        """The exchange of a slab's rows, for so many ids of a device's samples."""
        axes, distinct = self.axes, self.layout.distinct(slab)
        found = stages(axes.mesh.shape, axes.data, axes.model, ids, distinct)
        return OwnerExchange(slab, found, axes.split, self.comm_dtype, self.native, self.row_sums)

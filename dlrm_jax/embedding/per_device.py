"""Lookups and updates on one device, inside `jax.shard_map`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from dlrm_jax.backend import Backend
from dlrm_jax.embedding import exchange, kernel_dispatch, pooling, row_gradients
from dlrm_jax.embedding.bag_cotangents import BlockCotangents
from dlrm_jax.embedding.fully_sharded import FullySharded
from dlrm_jax.embedding.kernel_dispatch import has_fused_update, has_native_update
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.reshard import slab_spec, slot_ndims
from dlrm_jax.embedding.routing_key import check_routed, routing_key
from dlrm_jax.embedding.row_sums import RowSums
from dlrm_jax.embedding.row_update import RowOrder, checked_step
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.slab_update import update_slab
from dlrm_jax.embedding.state import (
    EmbeddingState,
    KnownRows,
    RoutedIds,
    RowGradients,
    SparseCotangents,
)
from dlrm_jax.embedding.table import Lookup


@dataclasses.dataclass(frozen=True, eq=False)
class PerDevice:
    """Lookups and updates of one device's samples, called inside `jax.shard_map`.

    `EmbeddingCollection`'s methods of the same names map these over the mesh. In a map of your own,
    split tables by `state_specs`, and arrays of samples by ``axes.batch``. Routed ids, cotangents
    and row gradients are those of this device.

    Attributes:
        axes: axes of the mesh; the map runs over all of them.
        layout: slabs and blocks of the tables.
        lookups: lookups in the order of the layout.
        comm_dtype: dtype of vectors and cotangents between devices; None keeps their dtype.
        backend: record of the devices.
        native: whether native kernels may be used.
    """

    axes: MeshAxes
    layout: Layout
    lookups: Sequence[Lookup]
    comm_dtype: str | None
    backend: Backend
    native: bool

    @functools.cached_property
    def trained_slabs(self) -> dict[str, Slab]:
        """The slabs that have an optimizer, by name."""
        return {slab.name: slab for slab in self.layout.slabs if slab.optimizer}

    @functools.cached_property
    def exchanged_slabs(self) -> dict[str, Slab]:
        """The trained slabs whose cotangents go to the owners of bags, by name."""
        return {name: slab for name, slab in self.trained_slabs.items() if not slab.fully_sharded}

    @functools.cached_property
    def fully_sharded(self) -> FullySharded:
        """The slabs that are split over all devices."""
        return FullySharded(self.axes, self.layout, self.comm_dtype, self.native, self.row_sums)

    @functools.cached_property
    def row_sums(self) -> RowSums:
        """The way to sum gradients of equal rows on these devices."""
        return self.backend.row_sums

    @functools.cached_property
    def native_slabs(self) -> set[str]:
        """Names of the slabs that native kernels update."""
        return {s.name for s in self.layout.slabs if self.native and has_native_update(s)}

    @functools.cached_property
    def fused_slabs(self) -> set[str]:
        """Names of the slabs that kernels of Pallas update."""
        return {s.name for s in self.layout.slabs if has_fused_update(s, self.backend)}

    @functools.cached_property
    def routing(self) -> str:
        """The key of the ids that `route` gives."""
        return routing_key(self.layout, self.lookups, self.axes)

    @property
    def state_specs(self) -> EmbeddingState:
        """The split of a state's arrays over the mesh, as `PartitionSpec`s."""
        axes = self.axes
        return EmbeddingState(
            {slab.name: slab_spec(slab, axes) for slab in self.layout.slabs},
            {
                name: {slot: slab_spec(slab, axes, n) for slot, n in slot_ndims(slab).items()}
                for name, slab in self.trained_slabs.items()
            },
            self.layout.key,
        )

    def lookup(
        self,
        state: EmbeddingState,
        ids: Int[Array, "b C"],
        id_weights: Float[Array, "b C"] | None = None,
    ) -> tuple[dict[str, Float[Array, "b *_"]], RoutedIds]:
        """Calls `route` and `pool`."""
        routed = self.route(ids, id_weights)
        return self.pool(state, routed), routed

    def route(
        self, ids: Int[Array, "b C"], id_weights: Float[Array, "b C"] | None = None
    ) -> RoutedIds:
        """Sends the ids of this device's samples to the owners; see `EmbeddingCollection.route`."""
        blocks = self.layout.blocks
        ids = exchange.map_ids(self.layout, ids)
        requests, places = self.fully_sharded.request(ids)
        sent = [places[i] if i in places else exchange.route(b, ids) for i, b in enumerate(blocks)]
        rows = exchange.send_to_owners(blocks, sent, self.axes)
        row_weights = None
        if id_weights is not None:
            mapped = [id_weights[:, source] for source, _ in self.layout.mapped]
            id_weights = jnp.concatenate([id_weights, *mapped], axis=1)
            askers = self.layout.askers
            sizes = [
                requests[askers[b.slab.name]].rows.size if b.slab.fully_sharded else b.slab.rows
                for b in blocks
            ]
            weights = [
                exchange.route_weights(block, id_weights, x, size)
                for block, x, size in zip(blocks, sent, sizes, strict=True)
            ]
            row_weights = exchange.send_to_owners(blocks, weights, self.axes)
        denominators, unknown = {}, {}
        for lookup, columns in zip(self.lookups, self.layout.columns, strict=True):
            own, table = ids[:, columns], self.layout.table(lookup.table)
            unknown[lookup.name] = own >= table.rows
            if lookup.pooling != "none":
                unknown[lookup.name] = jnp.any(unknown[lookup.name], axis=1)
            if lookup.pooling == "mean":
                own_weights = None if id_weights is None else id_weights[:, columns]
                dtype = self.layout.slab_of(lookup.table).vector_dtype
                if own_weights is not None:
                    dtype = jnp.promote_types(dtype, own_weights.dtype)
                total = pooling.weight_sums(own, own_weights, dtype)
                denominators[lookup.name] = jnp.where(total == 0, jnp.inf, total)
        rows, row_weights, requests = map(_expanded, (rows, row_weights, requests))
        return RoutedIds(rows, row_weights, denominators, unknown, requests, self.routing)

    def pool(self, state: EmbeddingState, routed: RoutedIds) -> dict[str, Float[Array, "b *_"]]:
        """Pools the bags of this device's samples; see `EmbeddingCollection.pool`."""
        check_routed(routed, self.routing)
        blocks = self.layout.blocks
        rows, row_weights, requests = jax.tree.map(
            lambda x: x[0, 0], (routed.rows, routed.id_weights, routed.requests)
        )
        tables = dict(state.tables) | self.fully_sharded.fetch(state.tables, requests)
        vectors = []
        for i, block in enumerate(blocks):
            slab = tables[block.slab.name]
            given = rows[i], None if row_weights is None else row_weights[i]
            vectors.append(kernel_dispatch.pool(block, slab, *given, self.native, self.backend))
        received = exchange.send_back(blocks, vectors, self.axes, self.comm_dtype)
        pooled = {}
        for lookup, bags in zip(self.lookups, self.layout.bags, strict=True):
            if lookup.pooling == "none":
                found = exchange.collect_each(self.layout, bags, received)
            else:
                found = exchange.collect(self.layout, bags[0], received)
            if lookup.pooling == "mean":
                found = found / routed.denominators[lookup.name][:, None]
            unknown = routed.unknown[lookup.name]
            pooled[lookup.name] = jnp.where(unknown[..., None], jnp.nan, found)
        return pooled

    def send_cotangents(
        self, routed: RoutedIds, cotangents: Mapping[str, Float[Array, "b *_"]]
    ) -> SparseCotangents:
        """Sends cotangents to the owners; see `EmbeddingCollection.send_cotangents`."""
        check_routed(routed, self.routing)
        of_bags: list[Array] = []
        for lookup in self.lookups:
            cotangent = cotangents[lookup.name]
            if lookup.pooling == "none":
                of_bags += jnp.unstack(cotangent, axis=1)
            elif lookup.pooling == "mean":
                of_bags.append(cotangent / routed.denominators[lookup.name][:, None])
            else:
                of_bags.append(cotangent)
        weights = routed.id_weights
        slabs = self.exchanged_slabs
        trained = [i for i, b in enumerate(self.layout.blocks) if b.slab.name in slabs]
        blocks = [self.layout.blocks[i] for i in trained]
        by_receiver = [exchange.spread(block, of_bags) for block in blocks]
        sent = exchange.send_to_owners(blocks, by_receiver, self.axes, self.comm_dtype)
        return SparseCotangents(
            tuple(routed.rows[i] for i in trained),
            None if weights is None else tuple(weights[i] for i in trained),
            _expanded(sent),
            self.fully_sharded.sums(routed, of_bags),
        )

    def coalesce(self, cotangents: SparseCotangents, sum_duplicates: bool = False) -> RowGradients:
        """Sums the gradients of each row; see `EmbeddingCollection.coalesce`."""

        def local(x: Array) -> Array:
            return x.reshape(-1, *x.shape[-2:])

        slabs = self.exchanged_slabs
        blocks: dict[str, list[BlockCotangents]] = {name: [] for name in slabs}
        trained = [block for block in self.layout.blocks if block.slab.name in slabs]
        for i, block in enumerate(trained):
            weights = None if cotangents.id_weights is None else local(cotangents.id_weights[i])
            blocks[block.slab.name].append(
                (local(cotangents.rows[i]), weights, local(cotangents.cotangents[i]))
            )
        coalesced = row_gradients.coalesce(
            list(slabs.values()),
            blocks,
            self.axes,
            sum_duplicates,
            self.comm_dtype,
            self.native_slabs | self.fused_slabs,
            self.row_sums,
        )
        requests = self.fully_sharded.merge(cotangents.requests)
        squares = self.fully_sharded.squares(requests) if requests and sum_duplicates else None
        gradients = {name: items for name, (items, _) in coalesced.items()}
        known = {name: KnownRows(order) for name, (_, order) in coalesced.items()}
        return RowGradients(gradients, known, self.sums(sum_duplicates), requests, squares)

    def sums(self, sum_duplicates: bool) -> bool:
        """Whether `coalesce` returns each row once."""
        return all(
            sum_duplicates
            or (
                slab.needs_sums(self.row_sums != "scatter")
                and name not in self.native_slabs | self.fused_slabs
                and not slab.fully_sharded
            )
            for name, slab in self.trained_slabs.items()
        )

    def apply(
        self,
        state: EmbeddingState,
        gradients: RowGradients,
        step: ArrayLike,
        rate_factor: Float[Array, ""] | None = None,
    ) -> EmbeddingState:
        """Updates the touched rows of this device; see `EmbeddingCollection.apply`."""
        tables, slots = dict(state.tables), dict(state.slots)
        step = checked_step(step)
        for name, slab in self.exchanged_slabs.items():
            given = gradients.blocks[name], gradients.known[name].order
            args = tables[name], slots[name], *given, step, rate_factor
            tables[name], slots[name] = self._update(slab, *args)
        update = functools.partial(self._update, step=step, rate_factor=rate_factor)
        for name in gradients.requests:
            args = name, tables[name], slots[name], gradients.requests, update
            tables[name], slots[name] = self.fully_sharded.apply(
                *args, name in self.native_slabs | self.fused_slabs, gradients.penalty
            )
        return dataclasses.replace(state, tables=tables, slots=slots)

    def _update(
        self,
        slab: Slab,
        table: Array,
        slots: dict[str, Array],
        blocks: Sequence[BlockCotangents],
        order: RowOrder,
        step: Array,
        rate_factor: Array | None,
    ) -> tuple[Array, dict[str, Array]]:
        kernels = "native" if slab.name in self.native_slabs else "xla"
        # Sums needn't be sorted again, and those of all rows are one pass over the table. Without
        # sums the kernels are better for small tables, too: compiled by jax 0.10.1 for one H100 and
        # 32,768 samples, Kaggle's tables made 100 kernels and 0.37 GiB of temporaries with 569k
        # rows updated so, where XLA's sums of all rows made 113 and 0.43, with as many sorts.
        if slab.name in self.fused_slabs and order == "any":
            kernels = "fused"
        given = table, slots, blocks, step, rate_factor
        return update_slab(slab, self.axes, *given, kernels=kernels, order=order)

    def update(
        self,
        state: EmbeddingState,
        routed: RoutedIds,
        cotangents: Mapping[str, Float[Array, "b *_"]],
        step: ArrayLike,
    ) -> EmbeddingState:
        """Calls `send_cotangents`, `coalesce` and `apply`."""
        return self.apply(state, self.coalesce(self.send_cotangents(routed, cotangents)), step)


def _expanded(arrays: Any) -> Any:
    """One device's [1, 1, ...] of a tree of arrays [D, M, ...]; a tuple for a sequence."""
    return jax.tree.map(
        lambda x: x[None, None], tuple(arrays) if isinstance(arrays, list) else arrays
    )

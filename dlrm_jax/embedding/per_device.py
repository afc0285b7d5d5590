"""The parts of a step on one device, inside `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from dlrm_jax.embedding import exchange, row_gradients
from dlrm_jax.embedding.layout import Layout, Slab
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.reshard import slab_spec, slot_ndims
from dlrm_jax.embedding.rounding import bits_of_rows, round_randomly
from dlrm_jax.embedding.row_optimizer import mean_of_columns
from dlrm_jax.embedding.row_update import update_rows
from dlrm_jax.embedding.state import EmbeddingState, Residuals, RowGradients, SparseCotangents
from dlrm_jax.embedding.table import Lookup


class PerDevice:
    """Lookups and updates of one device's part of a batch, called inside `jax.shard_map`.

    `EmbeddingCollection`'s methods of the same names map these over the mesh. In a map of your own,
    split tables by `state_specs`, and arrays of samples by ``axes.batch``. Residuals, cotangents
    and row gradients are this device's parts.

    Attributes:
        axes: axes of the mesh; the map runs over all of them.
        layout: slabs and blocks of the tables.
        lookups: lookups in the order of the layout.
        comm_dtype: dtype of vectors and cotangents between devices; None keeps their dtype.
        native: whether native kernels may run lookups.
        native_slabs: names of the slabs that native kernels update.
    """

    def __init__(
        self,
        axes: MeshAxes,
        layout: Layout,
        lookups: Sequence[Lookup],
        comm_dtype: str | None,
        native: bool,
        native_slabs: Container[str],
    ):
        self.axes = axes
        self.layout = layout
        self.lookups = lookups
        self.comm_dtype = comm_dtype
        self.native = native
        self.native_slabs = native_slabs
        self.trained_blocks = [i for i, b in enumerate(layout.blocks) if b.slab.optimizer]
        self.trained_slabs = {slab.name: slab for slab in layout.slabs if slab.optimizer}
        self.optimizers = {s.name: s.optimizer for s in layout.slabs if s.optimizer}

    @property
    def state_specs(self) -> EmbeddingState:
        """The split of a state's arrays over the mesh, as `PartitionSpec`s."""
        model = self.axes.model
        return EmbeddingState(
            {slab.name: slab_spec(slab, model) for slab in self.layout.slabs},
            {
                name: {slot: slab_spec(slab, model, n) for slot, n in slot_ndims(slab).items()}
                for name, slab in self.trained_slabs.items()
            },
        )

    def lookup(
        self,
        state: EmbeddingState,
        ids: Int[Array, "b C"],
        id_weights: Float[Array, "b C"] | None = None,
    ) -> tuple[dict[str, Float[Array, "b *_"]], Residuals]:
        """Pools the bags of this device's samples; see `EmbeddingCollection.lookup`."""
        pooled, rows, at_rows, denominators = exchange.lookup(
            self.layout,
            self.lookups,
            state.tables,
            ids,
            id_weights,
            self.axes,
            self.comm_dtype,
            self.native,
        )
        return pooled, Residuals(_parts(rows), at_rows and _parts(at_rows), denominators)

    def send_cotangents(
        self, residuals: Residuals, cotangents: Mapping[str, Float[Array, "b *_"]]
    ) -> SparseCotangents:
        """Sends cotangents to the rows' owners; see `EmbeddingCollection.send_cotangents`."""
        return self.with_rows(residuals, self.at_owners(residuals.denominators, cotangents))

    def at_owners(
        self, denominators: Mapping[str, Array], cotangents: Mapping[str, Array]
    ) -> tuple[Float[Array, "1 1 N T d"], ...]:
        """Sends cotangents of bags to the owners of their rows, for each block that is trained."""
        blocks = [self.layout.blocks[i] for i in self.trained_blocks]
        return _parts(
            exchange.send_cotangents(
                self.lookups, blocks, denominators, cotangents, self.axes, self.comm_dtype
            )
        )

    def with_rows(self, residuals: Residuals, sent: tuple[Array, ...]) -> SparseCotangents:
        """Adds the rows of the trained blocks to the cotangents at their owners."""
        weights = residuals.id_weights
        return SparseCotangents(
            tuple(residuals.rows[i] for i in self.trained_blocks),
            None if weights is None else tuple(weights[i] for i in self.trained_blocks),
            sent,
        )

    def coalesce(self, cotangents: SparseCotangents, sum_duplicates: bool = False) -> RowGradients:
        """Sums the gradients of each row; see `EmbeddingCollection.coalesce`."""

        def local(x: Array) -> Array:
            return x.reshape(-1, *x.shape[-2:])

        slabs = self.trained_slabs
        blocks: dict[str, list[row_gradients.BlockCotangents]] = {name: [] for name in slabs}
        for i, number in enumerate(self.trained_blocks):
            weights = None if cotangents.id_weights is None else local(cotangents.id_weights[i])
            blocks[self.layout.blocks[number].slab.name].append(
                (local(cotangents.rows[i]), weights, local(cotangents.cotangents[i]))
            )
        coalesced = row_gradients.coalesce(
            list(slabs.values()),
            blocks,
            self.axes,
            sum_duplicates,
            self.comm_dtype,
            self.native_slabs,
        )
        return RowGradients(coalesced, self.sums(sum_duplicates))

    def sums(self, sum_duplicates: bool) -> bool:
        """Whether `coalesce` returns each row once."""
        return all(
            sum_duplicates or (slab.needs_sums(False) and name not in self.native_slabs)
            for name, slab in self.trained_slabs.items()
        )

    def apply(
        self, state: EmbeddingState, gradients: RowGradients, step: Integer[Array, ""] | int
    ) -> EmbeddingState:
        """Updates the touched rows of this device; see `EmbeddingCollection.apply`."""
        tables, slots = dict(state.tables), dict(state.slots)
        for name, slab in self.trained_slabs.items():
            args = tables[name], slots[name], gradients.blocks[name], jnp.asarray(step)
            if name in self.native_slabs:
                tables[name], slots[name] = self.optimizers[name].native_update(*args)
            else:
                tables[name], slots[name] = _update(slab, self.axes, *args)
        return EmbeddingState(tables, slots)

    def update(
        self,
        state: EmbeddingState,
        residuals: Residuals,
        cotangents: Mapping[str, Float[Array, "b *_"]],
        step: Integer[Array, ""] | int,
    ) -> EmbeddingState:
        """Calls `send_cotangents`, `coalesce` and `apply`."""
        return self.apply(state, self.coalesce(self.send_cotangents(residuals, cotangents)), step)


def _update(
    slab: Slab,
    axes: MeshAxes,
    table: Array,
    slots: dict[str, Array],
    blocks: Sequence[row_gradients.BlockCotangents],
    step: Array,
) -> tuple[Array, dict[str, Array]]:
    """Updates one device's part of a slab."""
    assert slab.optimizer is not None
    rows, gradients = row_gradients.expand(blocks)

    def mean_of_all_columns(x: Array) -> Array:
        return jax.lax.pmean(mean_of_columns(x), axes.model)

    def rounded(values: Array) -> Array:
        shard = jax.lax.axis_index(axes.model) if slab.sharded else 0
        return round_randomly(values, bits_of_rows(slab, rows, step, shard))

    return update_rows(
        slab.optimizer,
        table,
        slots,
        rows,
        gradients,
        step,
        mean_of_all_columns if slab.split == "columns" else mean_of_columns,
        slab.dtype,
        rounded if slab.rounds_randomly else None,
    )


def _parts(arrays: Sequence[Array]) -> tuple[Array, ...]:
    """One device's parts [1, 1, ...] of arrays [D, M, ...]."""
    return tuple(x[None, None] for x in arrays)

"""The sharded tables of a model: looked up, differentiated and updated on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer

from dlrm_jax.embedding import kernel_dispatch, reshard, sharded_ops, table_io
from dlrm_jax.embedding.bags import check_batch, check_ids
from dlrm_jax.embedding.comm_dtype import check_dtype
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.optimizer import RowOptimizer, slot_shapes
from dlrm_jax.embedding.plan import Plan
from dlrm_jax.embedding.planning.devices import device_like
from dlrm_jax.embedding.planning.planner import automatic_plan
from dlrm_jax.embedding.planning.workload import Workload, bags_of
from dlrm_jax.embedding.row_optax import as_row_optimizer
from dlrm_jax.embedding.state import EmbeddingState, Residuals, RowGradients, SparseCotangents
from dlrm_jax.embedding.storage_dtype import storage_dtype
from dlrm_jax.embedding.table import Feature, Lookup, Table, check_descriptions
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import DATA, MODEL, check_axes
from dlrm_jax.native.ops import Kernels, available


class EmbeddingCollection:
    """Tables, the features that read them, and a plan of where they lie.

    Holds descriptions only; arrays live in an `EmbeddingState`, a pure pytree. A train step is

        pooled, residuals = collection.lookup(state, ids)
        loss, (g, pooled_g) = jax.value_and_grad(loss_fn, argnums=(0, 1))(params, pooled)
        state = collection.update(state, residuals, pooled_g, step)

    with the state donated, so that rows are updated in place; ``update`` is ``send_cotangents``,
    ``coalesce`` and ``apply``, which can be called one by one to clip or accumulate.

    Args:
        tables: their descriptions; every one must be read by a lookup.
        features: in the order of their columns in the id array.
        lookups: in the order of the results.
        mesh: of axes ``data`` and ``model``, see `dlrm_jax.mesh.make_mesh`.
        optimizer: a `RowOptimizer` or an optax transform, see `RowOptax`; of the tables that
            have none of their own.
        plan: of ``mesh.shape["model"]`` shards; None for `automatic_plan`.
        comm_dtype: in which pooled vectors and cotangents travel between devices, such as
            ``"bfloat16"``, for half the bytes; they are summed in at least float32 nevertheless.
            None for their own.
        kernels: ``"auto"`` looks long bags up and updates rows with `dlrm_jax.native` on CPUs
            where it is built, ``"native"`` demands that it is built, ``"jax"`` does without. A
            `training.learner.Learner` lets its model do the same.

    Raises:
        UserError: the descriptions or the plan contradict each other or the mesh.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        features: Sequence[Feature],
        lookups: Sequence[Lookup],
        mesh: Mesh,
        optimizer: RowOptimizer | optax.GradientTransformation | None = None,
        plan: Plan | None = None,
        comm_dtype: str | None = None,
        kernels: Kernels = "auto",
    ):
        check_axes(mesh)
        if optimizer is not None:
            optimizer = as_row_optimizer(optimizer, "optimizer")
        check_descriptions(tables, features, lookups, optimizer)
        check_dtype(comm_dtype)
        self.tables = {table.name: table for table in tables}
        self.features = tuple(features)
        self.lookups = tuple(lookups)
        self.mesh = mesh
        self.comm_dtype = comm_dtype
        self.plan = plan or automatic_plan(
            tables,
            mesh.shape[MODEL],
            optimizer=optimizer,
            workload=Workload(data_groups=mesh.shape[DATA], bags=bags_of(features, lookups)),
            device=device_like(mesh.devices.flat[0].device_kind),
        )
        if self.plan.shards != mesh.shape[MODEL]:
            raise UserError(
                f"the plan is for {self.plan.shards} shards, the mesh has {mesh.shape[MODEL]}"
            )
        self.plan.check(tables)
        self.layout = make_layout(tables, features, lookups, self.plan, optimizer)
        self.native = available(kernels, mesh.devices.flat[0].platform)
        self.native_slabs = frozenset(
            slab.name
            for slab in self.layout.slabs
            if self.native and kernel_dispatch.has_native_update(slab)
        )
        self._unpackers = {s.name: reshard.Unpacker(mesh, s) for s in self.layout.slabs}

    @property
    def kernels(self) -> dict[str, str]:
        """What runs the ``"lookups"`` and the ``"updates"`` of rows.

        ``"native"``, ``"jax"``, ``"none"`` if there are none, or which tables are whose. Of tables
        that lie in one array, native lookups of some are named as those of all.
        """
        return kernel_dispatch.kernels(self.layout, self.native)

    # -- Lookup and update: inside a jitted step ---------------------------------------

    @jax.named_scope("lookup")
    def lookup(
        self,
        state: EmbeddingState,
        ids: Int[Array, "B C"],
        id_weights: Float[Array, "B C"] | None = None,
    ) -> tuple[dict[str, Float[Array, "B *_"]], Residuals]:
        """Pools the bags of a batch.

        Args:
            state: the tables.
            ids: the bags of all features side by side, C = Σ max_ids; negative is absent.
                B must be divisible by the number of devices. A bag with an id that its
                table doesn't have becomes NaN; `check_ids` finds it by name beforehand.
            id_weights: weight of each id, [B, C]; data, not differentiated. None for ones.

        Returns:
            by lookup name, vectors [B, d] or, without pooling, [B, max_ids, d] of the table's
            width d in at least float32; and what `update` needs.

        Raises:
            UserError: ids or id_weights have another shape or dtype.
        """
        check_batch(self.mesh, self.features, ids, id_weights)
        return sharded_ops.lookup(
            self.mesh,
            self.layout,
            self.lookups,
            self.comm_dtype,
            state,
            ids,
            id_weights,
            self.native,
        )

    @jax.named_scope("update")
    def send_cotangents(
        self, residuals: Residuals, cotangents: Mapping[str, Float[Array, "B *_"]]
    ) -> SparseCotangents:
        """Sends the cotangents of the pooled vectors to the owners of the rows.

        Args:
            residuals: from `lookup`.
            cotangents: by lookup name, the gradient of the loss.

        Raises:
            UserError: there isn't one for each lookup.
        """
        names = {lookup.name for lookup in self.lookups}
        if cotangents.keys() != names:
            raise UserError(
                f"cotangents: expected one for each of the lookups {', '.join(sorted(names))}; "
                f"got {', '.join(sorted(cotangents)) or 'none'}"
            )
        return sharded_ops.send_cotangents(
            self.mesh, self.layout, self.lookups, self.comm_dtype, residuals, cotangents
        )

    @jax.named_scope("update")
    def coalesce(self, cotangents: SparseCotangents, sum_duplicates: bool = False) -> RowGradients:
        """Sums the gradients of each row over the whole batch, equally on every copy.

        Args:
            cotangents: result of `send_cotangents`; or those of several micro-batches, stacked
                along a new first axis as `jax.lax.scan` does.
            sum_duplicates: also where the optimizer doesn't need it, as
                `RowGradients.squared_norm` does.
        """
        return sharded_ops.coalesce(
            self.mesh,
            self.layout,
            self.comm_dtype,
            cotangents,
            sum_duplicates,
            self.native_slabs,
        )

    @jax.named_scope("update")
    def apply(
        self, state: EmbeddingState, gradients: RowGradients, step: Integer[Array, ""] | int
    ) -> EmbeddingState:
        """Updates the touched rows, in place where the state is donated.

        Args:
            state: the tables and their optimizer state.
            gradients: from `coalesce`.
            step: the number of updates done before this one.
        """
        return sharded_ops.apply(self.mesh, self.layout, state, gradients, step, self.native_slabs)

    def update(
        self,
        state: EmbeddingState,
        residuals: Residuals,
        cotangents: Mapping[str, Float[Array, "B *_"]],
        step: Integer[Array, ""] | int,
    ) -> EmbeddingState:
        """`send_cotangents`, `coalesce` and `apply` in one."""
        return self.apply(state, self.coalesce(self.send_cotangents(residuals, cotangents)), step)

    # -- Whole tables: outside the step ------------------------------------------------

    def init(self, seed: int) -> EmbeddingState:
        """Initial values, which depend on the seed and not on the mesh or the plan."""
        return self.from_arrays(lambda table: {}, seed)

    def state_specs(self) -> EmbeddingState:
        """`init`'s shapes, dtypes and shardings, with no array behind them."""
        tables, slots = {}, {}
        for slab in self.layout.slabs:
            rows = slab.rows * (self.plan.shards if slab.split == "rows" else 1)
            shapes = {"table": jax.ShapeDtypeStruct((rows, slab.dim), storage_dtype(slab.dtype))}
            if slab.optimizer:
                shapes |= slot_shapes(slab.optimizer, rows, slab.dim, slab.dtype)
            placed = {
                key: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=reshard.slab_sharding(self.mesh, slab, len(x.shape))
                )
                for key, x in shapes.items()
            }
            tables[slab.name] = placed.pop("table")
            if slab.optimizer:
                slots[slab.name] = placed
        return EmbeddingState(tables, slots)

    def from_arrays(
        self, source: Callable[[Table], Mapping[str, Array | np.ndarray]], seed: int
    ) -> EmbeddingState:
        """A state made from logical arrays, one slab at a time so that little is held twice.

        Args:
            source: gives, for a table, its ``"table"`` [rows, dim] and optimizer slots
                ([rows] or [rows, dim]) by name. What is missing gets initial values.
            seed: of the initial values.

        Raises:
            UserError: an array has another shape or an unknown name.
        """
        return table_io.from_arrays(self.mesh, self.layout, source, seed)

    def iter_arrays(self, state: EmbeddingState) -> Iterator[tuple[Table, str, Array]]:
        """Gives all logical arrays: of each table its ``"table"``, then its slots by name.

        Few of them exist at a time. Those of a table alone in its slab may be the state's
        own: don't donate the state while they are in use.
        """
        return table_io.iter_arrays(self.layout, self._unpackers, state)

    def to_arrays(self, state: EmbeddingState) -> Iterator[tuple[Table, dict[str, Array]]]:
        """`iter_arrays` by table, one slab at a time."""
        found: dict[str, dict[str, Array]] = {}
        for table, key, array in self.iter_arrays(state):
            found.setdefault(table.name, {})[key] = array
            if len(found[table.name]) == len(self.array_specs(table.name)):
                yield table, found.pop(table.name)

    def array_specs(self, table: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a table's arrays, as `from_arrays` wants them."""
        return table_io.array_specs(self.mesh, self.layout.slab_of(table), self.tables[table])

    def check_ids(self, ids: Int[np.ndarray, "B C"]) -> None:
        """Looks for ids that no table has; runs on the host.

        Raises:
            UserError: naming the first one's sample, feature, value and range.
        """
        check_ids(ids, self.features, self.lookups, self.tables)

"""Lookup, differentiation and update of a model's sharded tables on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from dlrm_jax.backend import backend_of
from dlrm_jax.embedding import copies, sharded_ops
from dlrm_jax.embedding.bags import check_batch, check_ids
from dlrm_jax.embedding.batches import Placed, cast_ids, cast_weights, pad_batch, put_ids
from dlrm_jax.embedding.comm_dtype import check_dtype
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.per_device import PerDevice
from dlrm_jax.embedding.plan import Plan
from dlrm_jax.embedding.planning.devices import device_like
from dlrm_jax.embedding.planning.planner import automatic_plan
from dlrm_jax.embedding.planning.workload import Workload, bags_of
from dlrm_jax.embedding.row_optax import as_row_optimizer
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.state import EmbeddingState, RoutedIds, RowGradients, SparseCotangents
from dlrm_jax.embedding.table import Feature, Lookup, Table, check_descriptions
from dlrm_jax.embedding.value_and_grad import value_and_grad
from dlrm_jax.embedding.whole_tables import WholeTables
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import DATA, MODEL, as_mesh
from dlrm_jax.native.ops import Kernels, available


class EmbeddingCollection(WholeTables):
    """Tables, the features that read them, and a plan of their placement.

    It has descriptions only; arrays are in an `EmbeddingState`, a pure pytree. A train step is

        loss, grads, rows = collection.value_and_grad(loss_fn)(state, ids, params, labels)
        state = collection.apply(state, rows, step)

    with the state donated, so that rows are updated in place. The lower level is ``lookup``, which
    is ``route`` and ``pool``, and ``update``, which is ``send_cotangents``, ``coalesce`` and
    ``apply``.

    Args:
        tables: tables; a lookup must read each of them.
        features: features in the order of their columns in the id array.
        lookups: lookups in the order of the results.
        mesh: mesh of the tables, such as `dlrm_jax.mesh.make_mesh` makes, or the shape of one,
            ``"2x4"``. Tables and batches are repeated over axes that are neither data nor model
            axes.
        optimizer: default optimizer of the tables: a `RowOptimizer`, or an optax transform.
        plan: placement of the tables for the shards of the model axis; None for `automatic_plan`.
        comm_dtype: dtype of pooled vectors and cotangents between devices, such as ``"bfloat16"``
            for half the bytes; sums are in at least float32. None keeps their dtype.
        kernels: implementation of lookups of long bags and of updates of rows. On CPUs ``"auto"``
            takes `dlrm_jax.native` if it is built, and ``"native"`` requires that it is; on GPUs
            and TPUs ``"auto"`` takes kernels of Pallas. ``"jax"`` leaves all to XLA.
        data_axes: name or names of the axes over which tables are copied and batches split.
        model_axis: name of the axis over which tables are split.

    Raises:
        UserError: the descriptions or the plan contradict each other or the mesh.
    """

    def __init__(
        self,
        tables: Iterable[Table],
        features: Iterable[Feature],
        lookups: Iterable[Lookup],
        mesh: Mesh | str,
        optimizer: RowOptimizer | optax.GradientTransformation | None = None,
        plan: Plan | None = None,
        comm_dtype: str | None = None,
        kernels: Kernels = "auto",
        *,
        data_axes: str | Sequence[str] = DATA,
        model_axis: str = MODEL,
    ):
        if optimizer is not None:
            optimizer = as_row_optimizer(optimizer, "optimizer")
        tables, features, lookups = tuple(tables), tuple(features), tuple(lookups)
        mesh = as_mesh(mesh)
        check_descriptions(tables, features, lookups, optimizer)
        check_dtype(comm_dtype)
        data = (data_axes,) if isinstance(data_axes, str) else tuple(data_axes)
        axes = MeshAxes(mesh, data, model_axis)
        self.features = features
        self.lookups = lookups
        self.mesh = mesh
        self.comm_dtype = comm_dtype
        self.plan = plan or automatic_plan(
            tables,
            axes.shards,
            optimizer=optimizer,
            workload=Workload(data_groups=axes.groups, bags=bags_of(features, lookups)),
            device=device_like(mesh.devices.flat[0].device_kind),
        )
        if self.plan.shards != axes.shards:
            raise UserError(
                f"the plan is for {self.plan.shards} shards, the mesh has {axes.shards}"
            )
        self.plan.check(tables)
        given = tables, features, lookups, self.plan, optimizer, axes.groups
        backend = backend_of(mesh)
        native = available(kernels, backend)
        if kernels == "jax":
            backend = dataclasses.replace(backend, row_kernels="xla")
        layout = make_layout(*given, packed_from=backend.packed_from)
        super().__init__(axes, layout, backend, native, tables)
        self.per_device = PerDevice(axes, layout, lookups, comm_dtype, backend, native)

    # -- Lookup and update: inside a jitted step ---------------------------------------

    def value_and_grad(
        self,
        loss_fn: Callable[..., Any],
        argnums: int | Sequence[int] = 0,
        *,
        has_aux: bool = False,
        sum_duplicates: bool = False,
        transform: Callable[..., Any] = jax.value_and_grad,
    ) -> Callable[..., tuple[Any, Any, RowGradients]]:
        """A function that computes a loss, its dense gradients and the gradients of touched rows.

        ``value_and_grad(loss_fn)(state, ids, *args, id_weights=None)`` looks up the ids, calls
        ``loss_fn(pooled, *args)``, and returns the loss (a pair with ``has_aux``), the gradients by
        ``argnums``, and the gradients of the touched rows, for `apply`.

        Args:
            loss_fn: function of the pooled vectors, by lookup name, and ``args`` that returns a
                scalar loss.
            argnums: number or numbers of the ``args`` to differentiate by; they are ignored where
                there are no ``args``.
            has_aux: whether ``loss_fn`` returns a pair of the loss and auxiliary data.
            sum_duplicates: flag of `coalesce`; `RowGradients.squared_norm` needs it.
            transform: ``jax.value_and_grad``, or ``nnx.value_and_grad`` where ``args`` has modules.
        """

        def row_gradients(routed: RoutedIds, cotangents: Mapping[str, Array]) -> RowGradients:
            return self.coalesce(self.send_cotangents(routed, cotangents), sum_duplicates)

        return value_and_grad(self.lookup, row_gradients, loss_fn, argnums, has_aux, transform)

    def lookup(
        self, state: EmbeddingState, ids: Any, id_weights: Any = None
    ) -> tuple[dict[str, Float[Array, "B *_"]], RoutedIds]:
        """Pools the bags of a batch.

        Args:
            state: tables; the optimizers' state isn't read.
            ids: ids of the batch, see `route`.
            id_weights: weight of each id, see `route`.

        Returns:
            The results of `pool` and of `route`.

        Raises:
            UserError: see `route` and `pool`.
        """
        routed = self.route(ids, id_weights)
        return self.pool(state, routed), routed

    @jax.named_scope("lookup")
    def route(self, ids: Any, id_weights: Any = None) -> RoutedIds:
        """Sends the ids of a batch to the owners of their rows. It reads no table.

        Args:
            ids: id array [B, C] int32, or arrays [B, L] or [B] by feature name, L ≤ max_ids. A
                negative id is absent. The number of devices must divide B. A bag with an id out of
                range gives NaN; `check_ids` reports such ids beforehand. NumPy arrays are checked
                and cast as `put` does, except arguments of a jitted function: JAX has wrapped their
                64-bit numbers to 32 bits before, so place them with `put`.
            id_weights: weight of each id, float32, in the form and shapes of ``ids``; constants.
                None for ones.

        Raises:
            UserError: ids or id_weights have another shape or dtype.
        """
        array, weights = cast_ids(self.features, ids, keep=(jax.Array,)), None
        if id_weights is not None:
            weights = cast_weights(self.features, ids, id_weights, keep=(jax.Array,))
        check_batch(self.axes.device_count, self.features, array, weights)
        return sharded_ops.route(self.per_device, array, weights)

    @jax.named_scope("lookup")
    def pool(self, state: EmbeddingState, routed: RoutedIds) -> dict[str, Float[Array, "B *_"]]:
        """Pools the bags of a batch at the owners of their rows.

        Args:
            state: tables; the optimizers' state isn't read.
            routed: result of `route` of this collection.

        Returns:
            Pooled vectors by lookup name, [B, d] or, without pooling, [B, max_ids, d], with d the
            table's width, in at least float32.

        Raises:
            UserError: the state or the routed ids are those of other tables or another plan.
        """
        return sharded_ops.pool(self.per_device, state, routed)

    @jax.named_scope("update")
    def send_cotangents(
        self, routed: RoutedIds, cotangents: Mapping[str, Float[Array, "B *_"]]
    ) -> SparseCotangents:
        """Sends the cotangents of the pooled vectors to the owners of the rows.

        Args:
            routed: second result of `lookup`, or that of `route`.
            cotangents: gradients of the loss by the pooled vectors, by lookup name.

        Raises:
            UserError: a lookup has no cotangent, or one of another shape, or see `pool`.
        """
        return sharded_ops.send_cotangents(self.per_device, routed, cotangents)

    @jax.named_scope("update")
    def coalesce(self, cotangents: SparseCotangents, sum_duplicates: bool = False) -> RowGradients:
        """Sums the gradients of each row over the whole batch, equally on every copy.

        Args:
            cotangents: result of `send_cotangents`, or those of several micro-batches, stacked
                along a new first axis as `jax.lax.scan` does.
            sum_duplicates: whether to sum even where the optimizer doesn't need it;
                `RowGradients.squared_norm` needs it.
        """
        return sharded_ops.coalesce(self.per_device, cotangents, sum_duplicates)

    @jax.named_scope("update")
    def apply(
        self,
        state: EmbeddingState,
        gradients: RowGradients,
        step: ArrayLike,
        rate_factor: ArrayLike | None = None,
    ) -> EmbeddingState:
        """Updates the touched rows, in place where the state is donated.

        Args:
            state: tables and their optimizer state.
            gradients: result of `coalesce`.
            step: number of updates done before this one, a scalar integer.
            rate_factor: factor of the changes of all rows, a scalar, such as one that is smaller
                after each plateau; None for 1.

        Raises:
            UserError: the step isn't one integer of at least 0, the state is that of other tables
                or another plan, or the optimizer's update has the wrong form.
        """
        return sharded_ops.apply(self.per_device, state, gradients, step, rate_factor)

    def update(
        self,
        state: EmbeddingState,
        routed: RoutedIds,
        cotangents: Mapping[str, Float[Array, "B *_"]],
        step: ArrayLike,
    ) -> EmbeddingState:
        """Calls `send_cotangents`, `coalesce` and `apply`."""
        return self.apply(state, self.coalesce(self.send_cotangents(routed, cotangents)), step)

    # -- Batches: on the host ----------------------------------------------------------

    def put(self, ids: Any, id_weights: Any = None, *, check: bool = True) -> Any:
        """Checks a batch's ids on the host and places them on the mesh.

        Args:
            ids: ids of this process's samples: an id array, arrays by feature name, or ragged bags
                by feature name as `Ragged` (values, lengths).
            id_weights: id weights in the same form and shapes, floats; None for ones.
            check: whether to look for ids out of range, see `check_ids`, and for id weights that
                aren't finite.

        Returns:
            The id array [B, C] int32; a pair of it and the id weights where they are given.

        Raises:
            UserError: ids aren't integers, or don't fit into int32 or the tables, an id has no
                finite weight of its own, or the number of devices doesn't divide the batch, see
                `pad_batch`.
        """
        described = (self.lookups, self.tables) if check else None
        return put_ids(self.axes, self.features, ids, id_weights, described)

    def pad_batch(self, ids: Any, *arrays: Any) -> Placed:
        """Pads a batch to a multiple of the number of devices.

        Args:
            ids: ids of B samples: an id array or arrays by feature name.
            arrays: arrays of the same samples, [B, ...]; zeros are appended.

        Returns:
            The padded ids [B', C] (padding is absent), the padded arrays, and sample weights [B']
            float32, 1 for a sample and 0 for padding, to weight the loss with.
        """
        return pad_batch(self.features, self.axes.device_count, ids, *arrays)

    def check_ids(self, ids: Any) -> None:
        """Checks on the host that every id is in the range of its table; takes ids as `put` does.

        Raises:
            UserError: an id is out of range; the message names its feature, sample and value.
        """
        check_ids(cast_ids(self.features, ids), self.features, self.lookups, self.tables)

    def check_copies(self, state: EmbeddingState) -> None:
        """Checks that devices with copies of a table and its optimizer state have the same bits.

        Each device reads its arrays once, and a few bytes are exchanged.

        Raises:
            UserError: copies differ; the message names the tables that lie in one array with them.
        """
        copies.check_copies(self.mesh, copies.of_tables(self.layout, state))

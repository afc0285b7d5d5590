"""The learner: tables, dense model and optimizers on a mesh, and their state."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from dlrm_jax.backend import backend_of
from dlrm_jax.device_memory import check_memory
from dlrm_jax.embedding import EmbeddingCollection, EmbeddingState, comm_dtype
from dlrm_jax.embedding.copies import check_copies, of_tables
from dlrm_jax.errors import UserError
from dlrm_jax.native import threefry
from dlrm_jax.precision import ProductPrecision, jit
from dlrm_jax.training import dense_split
from dlrm_jax.training.batch_layers import (
    check_keys,
    keys_of,
    raw_keys,
    split_model,
    use_batch_layers,
)
from dlrm_jax.training.losses import Loss, bce
from dlrm_jax.training.member_losses import MemberLoss, member_count
from dlrm_jax.training.native_model import has_native_layers, is_native, use_native_layers
from dlrm_jax.training.penalty import NO_PENALTY, Penalty
from dlrm_jax.training.ranking_losses import RankingLoss

AnyBatch = TypeVar("AnyBatch")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes in training, as one pure pytree.

    Attributes:
        step: number of updates done, a scalar int32.
        params: parameters of the dense model, as nested dicts.
        optimizer: optimizer state of the dense model.
        embedding: tables and their optimizer state.
        model_state: other state of the dense model: ``"rngs"``, which don't change, and
            ``"statistics"``, which it updates; a part that it doesn't have is left out.
    """

    step: Any
    params: Any
    optimizer: Any
    embedding: EmbeddingState | Any
    model_state: dict[str, Any] = dataclasses.field(default_factory=dict)


class Learner:
    """Descriptions and pure functions of training, without arrays.

    Args:
        collection: tables on their mesh, whose axes of type Auto may have any names.
        make_model: function that makes the dense model from seeds. The model is called with dense
            features [b, D] and pooled vectors by lookup name, and returns logits [b]. Each device
            calls it with some of the samples. In prediction (`nnx.Module.eval`) a logit must depend
            on its sample alone; in training, layers may use the batch, see `batch_layers`. Their
            statistics and draws are those of the batch over all devices, or of one micro-batch if
            there are several, and ignore the weights of samples.
        dense_optimizer: optax optimizer of the model's parameters.
        loss: function of logits and labels; it gives one value per sample, which depends on that
            sample alone. Or a loss of groups of samples, which batches then must have, or of the
            members of an `Ensemble`, which the model then must be.
        clip_norm: largest global norm of all gradients; 0 for any.
        accumulation_steps: number of micro-batches of a batch.
        penalty: L2 regularization of tables and layers.
        label_weights: weight in the loss of each label of an example, by its name, the main one
            first. With several, H, the model returns logits [b, H] in this order; see
            `label_weights.by_label` for the loss.
        native_keys: whether ``make_model`` takes keys of `native.threefry`, which give the same
            numbers sooner. They aren't for every function of JAX: `jax.random.poisson` refuses
            them, and so does `jnp.stack` beside JAX's own.
        shard_dense_optimizer: whether each device has a part of the dense optimizer's state and
            updates a part of the parameters, see `dense_update`.
        dense_comm_dtype: dtype of the gradients of the model between devices, see
            `dense_update.sum_over_devices`; None keeps their dtype.
        product_precision: precision of products of float32 matrices, see `jit`.

    Raises:
        UserError: the mesh's axes are Explicit, a number is out of range, no parameter can be split
            that should be, the loss is of members that the model hasn't, or the model has random
            keys of another kind than `jax.random.key` makes.
    """

    def __init__(
        self,
        collection: EmbeddingCollection,
        make_model: Callable[[nnx.Rngs], nnx.Module],
        dense_optimizer: optax.GradientTransformation,
        loss: Loss | RankingLoss | MemberLoss = bce,
        clip_norm: float = 0,
        accumulation_steps: int = 1,
        penalty: Penalty = NO_PENALTY,
        label_weights: Mapping[str, float] | None = None,
        native_keys: bool = False,
        shard_dense_optimizer: bool = False,
        dense_comm_dtype: str | None = None,
        product_precision: ProductPrecision = "float32",
    ):
        if collection.axes.explicit:
            raise UserError(
                "mesh: expected axes of type Auto for a learner, got Explicit ones; for those, "
                "write the step with EmbeddingCollection.value_and_grad"
            )
        if not 0 <= clip_norm < math.inf:
            raise UserError(
                f"clip_norm: expected a finite number, 0 for no clipping or more, got {clip_norm!r}"
            )
        if accumulation_steps < 1:
            raise UserError(
                f"accumulation_steps: expected an integer of at least 1, got {accumulation_steps!r}"
            )
        if accumulation_steps > 1 and isinstance(loss, RankingLoss | MemberLoss):
            raise UserError(
                f"accumulation_steps: expected 1 for a loss that needs all samples of a batch at "
                f"once, got {accumulation_steps}"
            )
        self.collection = collection
        self.axes = collection.axes
        self.mesh = collection.mesh
        self.backend = backend_of(self.mesh)
        self.dense_optimizer = dense_optimizer
        self.loss = loss
        self.clip_norm = clip_norm
        self.accumulation_steps = accumulation_steps
        self.penalty = penalty
        self.label_weights = dict(label_weights or {"label": 1.0})
        self.shard_dense_optimizer = shard_dense_optimizer and self.axes.device_count > 1
        comm_dtype.check_dtype(dense_comm_dtype, "dense_comm_dtype")
        self.dense_comm_dtype = dense_comm_dtype
        self.product_precision: ProductPrecision = product_precision
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self._make_model = make_model
        self._native_keys = native_keys and collection.native
        model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
        self._rng_specs = nnx.to_pure_dict(nnx.state(model, nnx.RngState))
        check_keys(self._rng_specs)
        self.members = member_count(model)
        if isinstance(loss, MemberLoss):
            loss.check(self.members)
        if self.shard_dense_optimizer:
            params = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
            dense_split.check_split(self.axes.groups, self.axes.shards, [x.shape for x in params])
        self.has_model_state = bool(jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param))))
        model.eval()
        self._graph = self._graph_of(model, training=False)
        model.train()
        self._training_graph = self._graph_of(model, training=True)

    def _graph_of(self, model: nnx.Module, training: bool) -> nnx.GraphDef[Any]:
        copy = nnx.merge(*nnx.split(model))
        if self.collection.native:
            use_native_layers(copy, training)
        if training:
            use_batch_layers(copy, self.axes.split)
        self._has_native_layers = has_native_layers(copy)
        chosen = self.backend.native_chunk if is_native(copy) else self.backend.dense_chunk
        self.dense_chunk = chosen
        return nnx.graphdef(copy)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels; H of them."""
        return tuple(self.label_weights)

    @property
    def kernels_in_use(self) -> dict[str, str]:
        """`EmbeddingCollection.kernels_in_use`, and ``"model"`` for DLRM's interaction.

        Other models have no native parts. JAX runs parts that aren't float32.
        """
        model = "native" if self._has_native_layers else "jax"
        return {**self.collection.kernels_in_use, "model": model}

    def model(
        self,
        params: Any,
        model_state: Mapping[str, Any] | None = None,
        training: bool = False,
        micro_batch: Int[Array, ""] | None = None,
    ) -> Any:
        """The model with these parameters.

        Args:
            params: parameters of a state.
            model_state: other state of the model; None if it has none.
            training: whether the model is for training; if it has a state, it then runs only in a
                `jax.shard_map`.
            micro_batch: number of micro-batches before this one in the whole run, which random
                draws in training depend on. None if the model draws nothing.
        """
        state = model_state or {}
        rngs = keys_of(state.get("rngs", {}), self._rng_specs, micro_batch)
        graph = self._training_graph if training else self._graph
        return nnx.merge(graph, params, rngs, state.get("statistics", {}))

    def jit(self, function: Callable[..., Any], **options: Any) -> jax.stages.Wrapped:
        """`jax.jit` for what calls the model, with the precision of its products."""
        return jit(function, self.product_precision, **options)

    def init_model(self, seed: int) -> tuple[Any, dict[str, Any]]:
        """Initial parameters of the model, as nested dicts, and its other state."""
        native = self._native_keys and threefry.is_default()
        key = threefry.key(seed) if native else jax.random.key(seed)
        params, rngs, statistics = split_model(self._make_model(nnx.Rngs(key)))
        parts = {"rngs": raw_keys(rngs), "statistics": statistics}
        return params, {name: part for name, part in parts.items() if part}

    def init(self, seed: int, embedding: EmbeddingState | None = None) -> TrainState:
        """The state before the first step; the same numbers on every mesh.

        Args:
            seed: seed of the initial values.
            embedding: initial tables and their optimizer state; None makes them from the seed.

        Raises:
            UserError: tables or the dense model don't fit the memory of a device.
        """
        check_memory("the dense model", self._dense_specs(), self.mesh, "use narrower layers")
        dense = self._placed_dense(seed)
        # The tables last: native kernels go on with them while the step is compiled.
        return dataclasses.replace(dense, embedding=embedding or self.collection.init(seed))

    def state_specs(self) -> TrainState:
        """Shapes, dtypes and shardings of a state's arrays; no array is made."""
        return dataclasses.replace(self._dense_specs(), embedding=self.collection.state_specs())

    def _dense_specs(self) -> TrainState:
        """The specs of all but the tables."""
        dense = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated),
            self._dense.trace(0).out_info,
        )
        if self.shard_dense_optimizer:
            split = dense_split.specs(self.axes, dense.optimizer)
            dense = dataclasses.replace(dense, optimizer=split)
        return dense

    @functools.cached_property
    def _dense(self) -> jax.stages.Wrapped:
        """`_init_dense`, which is traced once for each seed."""
        return jax.jit(self._init_dense, static_argnums=0)

    @functools.cached_property
    def _placed_dense(self) -> jax.stages.Wrapped:
        # Placed like the result of a step: otherwise the second step is compiled anew.
        shardings = jax.tree.map(lambda x: x.sharding, self._dense_specs())
        return jax.jit(self._init_dense, static_argnums=0, out_shardings=shardings)

    def _init_dense(self, seed: int) -> TrainState:
        params, model_state = self.init_model(seed)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, self.dense_optimizer.init(params), None, model_state)

    def check_copies(self, state: TrainState) -> None:
        """Checks that the copies of tables, parameters and their state are equal on all devices.

        Raises:
            UserError: they aren't; the message names the tables, or the dense model.
        """
        dense = jax.tree.leaves((state.params, state.optimizer, state.model_state))
        tables = of_tables(self.collection.layout, state.embedding)
        check_copies(self.mesh, {**tables, "the dense model": dense})

    def put(self, batch: AnyBatch) -> AnyBatch:
        """Places a training batch, split into micro-batches [A, B/A, ...] if there are any.

        Args:
            batch: samples of this process: a `Batch`, or a tree of other arrays [B, ...].

        Raises:
            UserError: the micro-batches don't divide the batch.
        """
        count = self.accumulation_steps
        if count == 1:
            return self.put_evaluation(batch)
        samples = len(jax.tree.leaves(batch)[0])
        if samples % count:
            raise UserError(
                f"accumulation_steps: expected a batch of a multiple of {count} samples, one part "
                f"for each micro-batch, got {samples}"
            )
        split = jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), batch)
        return jax.make_array_from_process_local_data(self.batch_sharding(leading=1), split)

    def put_evaluation(self, batch: AnyBatch) -> AnyBatch:
        """Places an evaluation batch, given this process's samples of it."""
        return jax.make_array_from_process_local_data(self.batch_sharding(), batch)

    def put_scalar(self, value: np.float32 | None) -> Array | None:
        """Places a number on all devices; None stays None."""
        if value is None:
            return None
        return jax.make_array_from_callback((), self.replicated, lambda _: np.asarray(value))

    def batch_sharding(self, leading: int = 0) -> NamedSharding:
        """The sharding of a batch's arrays, after ``leading`` axes that aren't split."""
        return self.axes.sharding(PartitionSpec(*[None] * leading, *self.axes.batch))

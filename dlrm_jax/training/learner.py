"""What is trained and where: tables, model and optimizers on a mesh, and their state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import EmbeddingCollection, EmbeddingState
from dlrm_jax.mesh import put_batch
from dlrm_jax.models.fields import Model
from dlrm_jax.training.losses import Loss, bce


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes in training, as one pure pytree.

    Attributes:
        step: the number of updates done.
        params: of the dense model, as nested dicts.
        optimizer: the state of its optimizer.
        embedding: the tables and the state of theirs.
    """

    step: Any
    params: Any
    optimizer: Any
    embedding: EmbeddingState | Any


class Learner:
    """Descriptions and pure functions, no arrays.

    Args:
        collection: the tables, on their mesh.
        make_model: makes the dense model from seeds. The model is called with the dense
            features [b, D] and the pooled vectors by lookup name, and returns logits [b]. Each
            device calls it with some of the samples, whose logits must not depend on others.
        dense_optimizer: of the model's parameters; any optax one.
        loss: of logits and labels, one value per sample that depends on that sample alone.
        clip_norm: the largest global norm of all gradients; 0 for any.
        accumulation_steps: micro-batches that a batch is worked through in.
    """

    def __init__(
        self,
        collection: EmbeddingCollection,
        make_model: Callable[[nnx.Rngs], nnx.Module],
        dense_optimizer: optax.GradientTransformation,
        loss: Loss = bce,
        clip_norm: float = 0,
        accumulation_steps: int = 1,
    ):
        self.collection = collection
        self.mesh = collection.mesh
        self.dense_optimizer = dense_optimizer
        self.loss = loss
        self.clip_norm = clip_norm
        self.accumulation_steps = accumulation_steps
        self._make_model = make_model
        model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
        model.set_attributes(Model, native=collection.native, raise_if_not_found=False)
        self._runs_natively = any(
            isinstance(part, Model) and part.runs_natively for _, part in nnx.iter_modules(model)
        )
        self._graph = nnx.graphdef(model)
        model.set_attributes(Model, training=True, raise_if_not_found=False)
        self._training_graph = nnx.graphdef(model)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())

    @property
    def kernels_in_use(self) -> dict[str, str]:
        """`EmbeddingCollection.kernels_in_use`, and as ``"model"`` what runs DLRM's interaction.

        Other models have nothing native. What isn't float32 is left to JAX.
        """
        model = "native" if self._runs_natively else "jax"
        return {**self.collection.kernels_in_use, "model": model}

    def model(self, params: Any, training: bool = False) -> Any:
        """The model with these parameters.

        Args:
            params: from `init_params`.
            training: whether it is to be differentiated.
        """
        return nnx.merge(self._training_graph if training else self._graph, params)

    def init_params(self, seed: int) -> Any:
        """Initial parameters of the model, as nested dicts."""
        return nnx.to_pure_dict(nnx.state(self._make_model(nnx.Rngs(seed)), nnx.Param))

    def init(self, seed: int, embedding: EmbeddingState | None = None) -> TrainState:
        """The state before the first step; the same numbers on every mesh.

        Args:
            seed: of the initial values.
            embedding: tables that are initialized already.
        """

        def dense() -> tuple[Any, Any, Any]:
            params = self.init_params(seed)
            return jnp.zeros((), jnp.int32), params, self.dense_optimizer.init(params)

        # Placed like what the step returns: otherwise the second step is compiled anew.
        step, params, optimizer = jax.jit(dense, out_shardings=self.replicated)()
        return TrainState(
            step=step,
            params=params,
            optimizer=optimizer,
            embedding=embedding or self.collection.init(seed),
        )

    def put(self, batch: Batch) -> Batch:
        """Places a training batch, split into micro-batches [A, B/A, ...] if there are any.

        Args:
            batch: this process's part of it.
        """
        count = self.accumulation_steps
        if count == 1:
            return put_batch(self.mesh, batch)
        split = jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), batch)
        return put_batch(self.mesh, split, leading=1)

    def put_evaluation(self, batch: Batch) -> Batch:
        """Places an evaluation batch, of which this process has a part."""
        return put_batch(self.mesh, batch)

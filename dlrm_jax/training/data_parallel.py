"""The dense model on the mesh: each device works through its own samples, one sum joins them.

Arrays that exist once per device are parts of [D, M, ...] ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from dlrm_jax.data.batches import Batch
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import BATCH, DATA, MODEL, PER_DEVICE
from dlrm_jax.training.learner import Learner

# What a CPU's dense model works on at a time: the activations of more samples fall out of its
# caches, the products of fewer are less efficient. On two cores, in chunks of 1024 the step of the
# Kaggle preset took 1 % longer at 8192 samples, that of `profile` 11 % at 2048.
_CHUNK = 512
_PREDICTED_CHUNK = 2048  # no activations are kept for a way back


def logits(learner: Learner, params: Any, pooled: Any, batch: Batch) -> Float[Array, " B"]:
    """The model's answers.

    Args:
        learner: whose model it is.
        params: of the model.
        pooled: the vectors of the batch's samples.
        batch: its dense features are used.
    """

    def run(params: Any, *inputs: Any) -> Float[Array, " b"]:
        chunks = _chunks(learner.mesh, inputs, _PREDICTED_CHUNK)

        def of_chunk(i: Any) -> Float[Array, " c"]:
            return _answers(learner.model(params), *_chunk(i, chunks, inputs))

        return jax.lax.map(of_chunk, jnp.arange(chunks)).reshape(-1)

    on_each = _on_each_device(learner.mesh, run, (PartitionSpec(), BATCH, BATCH), BATCH)
    return on_each(params, batch.dense, pooled)


def gradients(
    learner: Learner, params: Any, pooled: Any, batch: Batch
) -> tuple[tuple[Float[Array, "D M"], Float[Array, "D M"], Any], Any]:
    """Differentiates Σ wᵢ lossᵢ over a batch.

    Args:
        learner: whose model and loss they are.
        params: of the model.
        pooled: the vectors of the batch's samples.
        batch: or one of its micro-batches.

    Returns:
        Σ wᵢ, Σ wᵢ lossᵢ and its gradients by the parameters, of which each device has those of its
        own samples: `sum_over_devices` gives the batch's; and the cotangents of the vectors.
    """

    def loss_of(params: Any, pooled: Any, batch: Batch) -> Float[Array, ""]:
        answers = _answers(learner.model(params, training=True), batch.dense, pooled)
        with jax.named_scope("loss"):
            return jnp.sum(batch.sample_weights * learner.loss(answers, batch.labels))

    value_and_grad = jax.value_and_grad(loss_of, argnums=(0, 1))

    def run(params: Any, pooled: Any, batch: Batch) -> tuple[Any, Any]:
        chunks = _chunks(learner.mesh, (pooled, batch), _CHUNK)

        def of_chunk(i: Any, vectors: Any) -> tuple[Any, Any]:
            loss, (grads, cotangents) = value_and_grad(params, *_chunk(i, chunks, (vectors, batch)))
            # Cotangents take the place of the vectors, which nothing reads any more: in arrays of
            # their own, filled with zeros first, the step of 8192 samples took 4 % longer.
            return (loss, grads), _with_chunk(i, vectors, cotangents)

        def add(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            sums, vectors = carry
            found, vectors = of_chunk(i, vectors)
            return jax.tree.map(jnp.add, sums, found), vectors

        if chunks == 1:
            sums, cotangents = of_chunk(0, pooled)
        else:
            loss = jax.eval_shape(loss_of, params, pooled, batch)
            zero = jnp.zeros((), loss.dtype), jax.tree.map(jnp.zeros_like, params)
            sums, cotangents = jax.lax.fori_loop(0, chunks, add, (zero, pooled))
        sums = jnp.sum(batch.sample_weights, dtype=sums[0].dtype), *sums
        return jax.tree.map(lambda x: x[None, None], sums), cotangents

    in_specs, out_specs = (PartitionSpec(), BATCH, BATCH), (PER_DEVICE, BATCH)
    return _on_each_device(learner.mesh, run, in_specs, out_specs)(params, pooled, batch)


def sum_over_devices(mesh: Mesh, parts: Any) -> Any:
    """The sums of a tree's arrays [D, M, ...] over the devices, in one all-reduce.

    Emulated devices add one array of 476k numbers in 1.0 ms, but in 3.0 to 4.4 as a tuple of the
    parameters' shapes. Accelerators' collectives are combined by XLA itself, as soon as they may
    begin and without a copy.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def run(parts: Any) -> Any:
        mine = jax.tree.map(lambda x: x[0, 0], parts)
        if not on_cpu:
            return jax.lax.psum(mine, (DATA, MODEL))
        flat, unravel = ravel_pytree(mine)
        return unravel(jax.lax.psum(flat, (DATA, MODEL)))

    if mesh.size == 1:
        return jax.tree.map(lambda x: x[0, 0], parts)
    return jax.shard_map(run, mesh=mesh, in_specs=PER_DEVICE, out_specs=PartitionSpec())(parts)


def _answers(model: Any, dense: Array, pooled: Any) -> Float[Array, " B"]:
    logits = model(dense, pooled)
    if logits.shape != dense.shape[:1]:
        raise UserError(
            f"expected the model to return a logit for each of {len(dense)} samples, got an array "
            f"of shape {logits.shape}"
        )
    return logits


def _on_each_device(
    mesh: Mesh, run: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any
) -> Callable[..., Any]:
    # Unchecked, as the check would refuse models whose loops begin with constants.
    return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _chunks(mesh: Mesh, of_samples: Any, size: int) -> int:
    """How many parts a device's dense model works through its samples in, one after the other."""
    samples = len(jax.tree.leaves(of_samples)[0])
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return samples // size if on_cpu and samples and samples % size == 0 else 1


def _chunk(i: Any, chunks: int, tree: Any) -> Any:
    def part(x: Array) -> Array:
        size = len(x) // chunks
        return jax.lax.dynamic_slice_in_dim(x, i * size, size)

    return jax.tree.map(part, tree)


def _with_chunk(i: Any, tree: Any, chunk: Any) -> Any:
    def updated(x: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * len(part), 0)

    return jax.tree.map(updated, tree, chunk)

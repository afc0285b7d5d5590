"""The dense model on the mesh: each device computes with its own samples, one sum joins them.

Arrays that exist once per device are parts of arrays [D, M, ...].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from dlrm_jax.data.batches import Batch
from dlrm_jax.errors import UserError
from dlrm_jax.training.batch_layers import agree, split_model
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.member_losses import MemberLoss
from dlrm_jax.training.ranking_losses import Ranked, RankingLoss


def logits(learner: Learner, state: TrainState, pooled: Any, batch: Batch) -> Float[Array, "B *_"]:
    """The model's logits, [B], or [B, H] for H labels.

    Args:
        learner: learner of the model.
        state: state with the parameters and other state of the model.
        pooled: pooled vectors of the batch by lookup name, [B, d] or [B, L, d].
        batch: batch with the dense features, [B, D].
    """

    def run(params: Any, model_state: Any, *inputs: Any) -> Float[Array, "b *_"]:
        chunks = _chunks(inputs, learner.backend.prediction_chunk)

        def of_chunk(i: Any) -> Float[Array, "c *_"]:
            return _answers(learner, learner.model(params, model_state), *_chunk(i, chunks, inputs))

        found = jax.lax.map(of_chunk, jnp.arange(chunks))
        return found.reshape(-1, *found.shape[2:])

    whole, split = PartitionSpec(), learner.axes.batch
    on_each = _on_each_device(learner.mesh, run, (whole, whole, split, split), split)
    return on_each(state.params, state.model_state, batch.dense, pooled)


def gradients(
    learner: Learner,
    params: Any,
    model_state: Any,
    micro_batch: Int[Array, ""] | None,
    pooled: Any,
    batch: Batch,
    with_logits: bool = False,
) -> tuple[tuple[Float[Array, "D M"], Float[Array, "D M"], Any], Any, Any, Any]:
    """Differentiates Σ wᵢ lossᵢ over a batch; i are pairs or the like of a `RankingLoss`.

    Args:
        learner: learner of the model and the loss.
        params: parameters of the model.
        model_state: other state of the model.
        micro_batch: number of micro-batches before this one, see `Learner.model`.
        pooled: pooled vectors of the batch by lookup name, [B, d] or [B, L, d].
        batch: batch, or one of its micro-batches.
        with_logits: whether the logits are wanted, too.

    Returns:
        Σ wᵢ, Σ wᵢ lossᵢ and its gradients by the parameters, each for the samples of one device:
        `dense_update` sums them; the cotangents of the vectors; the model's state after the batch;
        and the logits, [B] or [B, H], or None if they aren't wanted.
    """

    def loss_of(
        params: Any, pooled: Any, model_state: Any, micro_batch: Any, batch: Batch
    ) -> tuple[Float[Array, ""], Any]:
        model = learner.model(params, model_state, True, micro_batch)
        members: Any = None
        if isinstance(learner.loss, MemberLoss):
            members = model.members(batch.dense, pooled)
            answers = jnp.mean(members, axis=1)
        else:
            answers = _answers(learner, model, batch.dense, pooled)
        if "statistics" in model_state:
            nnx.pop(model, nnx.Intermediate)  # values that layers record for direct callers
            *_, statistics = split_model(model)
            model_state = {**model_state, "statistics": agree(statistics, learner.axes.split)}
        with jax.named_scope("loss"):
            if isinstance(learner.loss, RankingLoss):
                loss, weight = _ranked(learner, learner.loss, answers, batch)
                return loss, (model_state, weight, answers if with_logits else None)
            if isinstance(learner.loss, MemberLoss):
                of_batch = batch.labels, batch.sample_weights
                loss = learner.loss.share(members, *of_batch, learner.axes.split)
            else:
                loss = jnp.sum(batch.sample_weights * _losses(learner, answers, batch))
        return loss, (model_state, None, answers if with_logits else None)

    value_and_grad = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)

    def run(
        params: Any, model_state: Any, micro_batch: Any, pooled: Any, batch: Batch
    ) -> tuple[Any, Any, Any, Any]:
        # Batch statistics, and losses that aren't a sum over samples, need all samples at once.
        at_once = learner.has_model_state or isinstance(learner.loss, RankingLoss | MemberLoss)
        size = None if at_once else learner.dense_chunk
        chunks = _chunks((pooled, batch), size)

        def of_chunk(i: Any, vectors: Any) -> tuple[Any, Any, Any]:
            own_vectors, own = _chunk(i, chunks, (vectors, batch))
            (loss, after), (grads, cotangents) = value_and_grad(
                params, own_vectors, model_state, micro_batch, own
            )
            # Cotangents take the place of the vectors, which nothing reads any more: in arrays of
            # their own, filled with zeros first, the step of 8192 samples took 4 % longer.
            return (loss, grads), _with_chunk(i, vectors, cotangents), after

        def add(i: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            sums, vectors, answers = carry
            found, vectors, (_, _, own) = of_chunk(i, vectors)
            return jax.tree.map(jnp.add, sums, found), vectors, _with_chunk(i, answers, own)

        weight = None
        if chunks == 1:
            sums, cotangents, (model_state, weight, answers) = of_chunk(0, pooled)
        else:
            loss, (_, _, shape) = jax.eval_shape(
                loss_of, params, pooled, model_state, micro_batch, batch
            )
            zero = jnp.zeros((), loss.dtype), jax.tree.map(jnp.zeros_like, params)
            answers = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
            carry = zero, pooled, answers
            sums, cotangents, answers = jax.lax.fori_loop(0, chunks, add, carry)
        if weight is None:
            weight = jnp.sum(batch.sample_weights, dtype=sums[0].dtype)
        sums = weight, *sums
        return jax.tree.map(lambda x: x[None, None], sums), cotangents, model_state, answers

    whole, split = PartitionSpec(), learner.axes.batch
    in_specs, out_specs = (
        (whole, whole, whole, split, split),
        (learner.axes.per_device, split, whole, split),
    )
    on_each = _on_each_device(learner.mesh, run, in_specs, out_specs)
    return on_each(params, model_state, micro_batch, pooled, batch)


def _answers(learner: Learner, model: Any, dense: Array, pooled: Any) -> Float[Array, "B *_"]:
    logits, labels = model(dense, pooled), learner.labels
    if logits.shape != (dense.shape[:1] if len(labels) == 1 else (len(dense), len(labels))):
        each = "" if len(labels) == 1 else f" and each of the {len(labels)} labels"
        raise UserError(
            f"expected the model to return a logit for each of {len(dense)} samples{each}, got an "
            f"array of shape {logits.shape}"
        )
    return logits


def _losses(learner: Learner, answers: Float[Array, "B *_"], batch: Batch) -> Float[Array, "B *_"]:
    """The loss of each sample, [B], or [B, H] for H labels.

    Other shapes would be broadcast to all pairs of samples.
    """
    for name in ("labels", "sample_weights"):
        shape = getattr(batch, name).shape
        if shape != answers.shape:
            raise UserError(
                f"{name}: expected one for each of {len(answers)} samples, got shape {shape}"
            )
    assert not isinstance(learner.loss, RankingLoss | MemberLoss)
    losses = (
        learner.loss(answers, batch.labels)
        if answers.ndim == 1
        else jax.vmap(learner.loss, 1, 1)(answers, batch.labels)
    )
    if jnp.shape(losses) != answers.shape:
        raise UserError(
            f"expected the loss to return a value for each of {len(answers)} samples, got an array "
            f"of shape {jnp.shape(losses)}"
        )
    return losses


def _ranked(
    learner: Learner, loss: RankingLoss, answers: Float[Array, " b"], batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """This device's share of a loss that compares samples of all devices, and of its weight.

    Logits are few: each device gets those of the whole batch. It knows the derivatives of its own,
    by those of all devices' shares, and so its share of the loss is made linear in them.
    """
    if batch.groups is None:
        raise UserError(f"groups: expected those of {loss.column} in each batch, got none")
    # A user's model may give bfloat16, in which a group's number is rounded.
    answers = answers.astype(jnp.promote_types(answers.dtype, jnp.float32))
    columns = (answers, batch.labels, batch.sample_weights, batch.groups)
    # As floats, which hold these numbers exactly: one collective instead of four.
    table = jnp.stack([x.astype(answers.dtype) for x in columns])
    first, axes = 0, learner.axes.split
    if learner.axes.device_count > 1:
        table = jax.lax.all_gather(jax.lax.stop_gradient(table), axes, axis=1, tiled=True)
        first = jax.lax.axis_index(axes) * len(answers)
    of_all = jax.lax.stop_gradient(table)
    found = loss(of_all[0], of_all[1], of_all[2], of_all[3].astype(jnp.int32))
    own = Ranked(*(jax.lax.dynamic_slice_in_dim(x, first, len(answers)) for x in found))
    linear = jnp.sum(own.gradients * answers)
    value = jnp.sum(own.losses) + linear - jax.lax.stop_gradient(linear)
    return value, jnp.sum(own.weights)


def _on_each_device(
    mesh: Mesh, run: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any
) -> Callable[..., Any]:
    # Unchecked, as the check would refuse models whose loops begin with constants.
    return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _chunks(of_samples: Any, size: int | None) -> int:
    """How many chunks of its samples a device's dense model works through, one after the other."""
    samples = len(jax.tree.leaves(of_samples)[0])
    return samples // size if size and samples and samples % size == 0 else 1


def _chunk(i: Any, chunks: int, tree: Any) -> Any:
    def of_chunk(x: Array) -> Array:
        size = len(x) // chunks
        return jax.lax.dynamic_slice_in_dim(x, i * size, size)

    return jax.tree.map(of_chunk, tree)


def _with_chunk(i: Any, tree: Any, chunk: Any) -> Any:
    def updated(x: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new, i * len(new), 0)

    return jax.tree.map(updated, tree, chunk)

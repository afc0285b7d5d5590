"""A train step, compiled ahead of time: its collectives, and the bytes it needs."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding.collectives import Collective, collectives
from dlrm_jax.embedding.owner_exchange import LATER_ROUNDS
from dlrm_jax.embedding.planning.devices import device_like
from dlrm_jax.embedding.planning.temporaries import temporaries
from dlrm_jax.mesh import DATA, MODEL
from dlrm_jax.programs.collectives import collectives as collectives_of
from dlrm_jax.programs.hlo import program_of
from dlrm_jax.training import dense_split, dense_update
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.member_losses import MemberLoss
from dlrm_jax.training.pipelined import abstract_routed, make_pipelined_step
from dlrm_jax.training.ranking_losses import RankingLoss
from dlrm_jax.training.step import make_train_step


def lower_step(
    learner: Learner,
    batch_size: int,
    dense_features: int,
    weighted: bool = False,
    pipelined: bool = False,
) -> jax.stages.Lowered:
    """Lowers the train step without making an array.

    Args:
        learner: learner of the step; its mesh may have more devices than there is memory for.
        batch_size: samples of a batch, over all devices.
        dense_features: number of dense features.
        weighted: whether ids have weights.
        pipelined: whether the step routes the ids of the next batch.
    """
    step: Any = make_train_step(learner)
    batch = abstract_batch(learner, batch_size, dense_features, weighted)
    if pipelined:
        step, routed = make_pipelined_step(learner), abstract_routed(learner, batch)
        return step.lower(learner.state_specs(), batch, routed, batch)
    return step.lower(learner.state_specs(), batch)


def compile_step(learner: Learner, *args: Any, **options: Any) -> jax.stages.Compiled:
    """Compiles the train step without making an array; the arguments are those of `lower_step`."""
    return lower_step(learner, *args, **options).compile()


def abstract_batch(
    learner: Learner, batch_size: int, dense_features: int, weighted: bool = False
) -> Batch:
    """Shapes, dtypes and shardings of a batch, as `Learner.put` places it."""
    columns = sum(feature.max_ids for feature in learner.collection.features)
    labels = len(learner.labels)
    count = learner.accumulation_steps
    leading = () if count == 1 else (count,)
    sharding = learner.batch_sharding(len(leading))

    def array(dtype: type[np.generic], *shape: int) -> jax.ShapeDtypeStruct:
        shape = (*leading, batch_size // count, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return Batch(
        dense=array(np.float32, dense_features),
        ids=array(np.int32, columns),
        labels=array(np.float32, *((labels,) if labels > 1 else ())),
        sample_weights=array(np.float32),
        id_weights=array(np.float32, columns) if weighted else None,
        groups=array(np.int32) if isinstance(learner.loss, RankingLoss) else None,
    )


def planned_collectives(
    learner: Learner, batch_size: int, weighted: bool = False
) -> tuple[Collective, ...]:
    """The expected collectives of a step: of tables, dense gradients, labels and clipping.

    Args:
        learner: learner of the step.
        batch_size: samples of a batch, over all devices.
        weighted: whether ids have weights.
    """
    shape = {DATA: learner.axes.groups, MODEL: learner.axes.shards}
    if learner.axes.device_count == 1:
        return ()
    layout = learner.collection.layout
    found = collectives(
        layout,
        shape,
        batch_size,
        weighted,
        learner.collection.comm_dtype,
        learner.accumulation_steps,
        bool(learner.clip_norm),
        learner.penalty.of_all_rows,
    )
    found += _of_dense_model(learner)
    if isinstance(learner.loss, RankingLoss):
        nbytes = 4 * 4 * batch_size  # logit, label, weight and group
        what = "logits, labels, weights, groups"
        found += (Collective("all-gather", (DATA, MODEL), what, nbytes, float(nbytes)),)
    if isinstance(learner.loss, MemberLoss):
        nbytes = 4 * (1 + learner.members + 1)
        what = "losses of members, weight"
        found += (Collective("all-reduce", (DATA, MODEL), what, nbytes, float(nbytes)),)
    if len(learner.labels) > 1:
        nbytes = len(learner.labels) * jnp.dtype(jnp.float32).itemsize
        purpose = "weights of labels"
        found += (Collective("all-reduce", (DATA, MODEL), purpose, nbytes, float(nbytes)),)
    if learner.clip_norm and shape[MODEL] > 1:
        for slab in layout.slabs:
            if slab.optimizer and slab.sharded:
                norm, nbytes = f"norm of {slab.name}", slab.vector_dtype.itemsize
                found += (Collective("all-reduce", (MODEL,), norm, nbytes, float(nbytes)),)
    return found


def _of_dense_model(learner: Learner) -> tuple[Collective, ...]:
    """The collectives of the dense gradients and the update, see `dense_update`."""
    parameters = jax.tree.leaves(learner.state_specs().params)
    is_sharded, dtype = learner.shard_dense_optimizer, learner.dense_comm_dtype
    split = [
        x
        for x in parameters
        if (is_sharded or dtype) and dense_split.is_split(learner.axes, x.shape)
    ]
    own = jnp.result_type(jnp.float32, *parameters).itemsize
    sent = jnp.dtype(dtype).itemsize if dtype else own
    count = sum(math.prod(x.shape) for x in split)
    whole = sum(math.prod(x.shape) for x in parameters) - count
    what = "dense gradients, loss" if whole else "loss"
    weight = [] if dense_update.weight_first(learner) else ["weight"]

    def over_all(kind: Any, purpose: str, nbytes: int) -> Collective:
        return Collective(kind, (DATA, MODEL), purpose, nbytes, float(nbytes))

    found = [over_all("all-reduce", ", ".join([what, *weight]), (whole + 1 + len(weight)) * own)]
    if dense_update.weight_first(learner):
        found.append(over_all("all-reduce", "weight", jnp.dtype(jnp.float32).itemsize))
    if split and dtype:
        found.append(over_all("all-to-all", "dense gradients", count * sent))
    elif split:
        nbytes = count * own // learner.axes.device_count
        found.append(over_all("reduce-scatter", "dense gradients", nbytes))
    if split and is_sharded:
        for kind, nbytes in _of_optimizer(learner):
            found.append(over_all(kind, "norms of the dense optimizer", nbytes))
        found.append(over_all("all-gather", "dense parameters", count * own))
        if learner.clip_norm:
            found.append(over_all("all-reduce", "norms of dense gradients", len(split) * own))
    elif split:
        found.append(over_all("all-gather", "sums of dense gradients", count * sent))
    return tuple(found)


def estimated_temporaries(learner: Learner, batch_size: int, dense_features: int) -> float:
    """The estimated bytes of a step besides its arguments.

    Those of CPUs are without the activations of the model, of which a CPU has few at a time.

    Args:
        learner: learner of the step.
        batch_size: samples of a batch, over all devices.
        dense_features: number of dense features.
    """
    shape = {DATA: learner.axes.groups, MODEL: learner.axes.shards}
    moved = planned_collectives(learner, batch_size)
    layout, all_rows = learner.collection.layout, learner.penalty.of_all_rows
    device = device_like(learner.axes.mesh.devices.flat[0].device_kind)
    sums = learner.clip_norm or learner.penalty.tables
    fused = learner.collection.backend.row_kernels != "xla" and not sums
    of_tables = temporaries(layout, moved, shape, batch_size, device, all_rows, fused)
    if not device.emulated:
        samples = batch_size // learner.axes.device_count // learner.accumulation_steps
        of_tables += activations(learner, samples, dense_features)
    gradients = jax.tree.leaves(learner.state_specs().params)
    return of_tables + sum(x.dtype.itemsize * math.prod(x.shape) for x in gradients)


def activations(learner: Learner, samples: int, dense_features: int) -> int:
    """The bytes that the dense model keeps for its gradients.

    XLA computes some of them again, and makes others for a while.

    Args:
        learner: learner of the model.
        samples: samples that a device trains on at once.
        dense_features: number of dense features.
    """
    layout, pooled = learner.collection.layout, {}
    for lookup, bags in zip(learner.collection.lookups, layout.bags, strict=True):
        table, slab = layout.table(lookup.table), layout.slab_of(lookup.table)
        sequence = (len(bags),) if lookup.pooling == "none" else ()
        shape = samples, *sequence, table.dim
        pooled[lookup.name] = jax.ShapeDtypeStruct(shape, slab.vector_dtype)
    dense = jax.ShapeDtypeStruct((samples, dense_features), np.float32)
    state = learner.state_specs()

    def kept(params: Any, model_state: Any, dense: Any, pooled: Any) -> Any:
        def answers(params: Any, pooled: Any) -> Any:
            return learner.model(params, model_state)(dense, pooled)

        return jax.vjp(answers, params, pooled)[1]

    found = jax.tree.leaves(jax.eval_shape(kept, state.params, state.model_state, dense, pooled))
    of_samples = [x for x in found if x.shape[:1] == (samples,)]
    return sum(x.dtype.itemsize * math.prod(x.shape) for x in of_samples)


def _of_optimizer(learner: Learner) -> list[tuple[str, int]]:
    """The collectives that XLA adds for norms of whole parameters; most optimizers need none."""
    specs = learner.state_specs()
    grads = dense_split.specs(learner.axes, specs.params)
    shardings = jax.tree.map(lambda x: x.sharding, (grads, specs.optimizer))
    update = jax.jit(learner.dense_optimizer.update, out_shardings=shardings)
    return compiled_collectives(update.lower(grads, specs.optimizer, grads).compile())


def compiled_collectives(compiled: jax.stages.Compiled) -> list[tuple[str, int]]:
    """Kind and bytes of every collective's result on one device.

    Those of rounds that seldom run aren't among them, see `embedding.owner_exchange`.
    """
    return collectives_of(program_of(compiled), LATER_ROUNDS)

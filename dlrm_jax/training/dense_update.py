"""The sums of the dense gradients over the devices, and the update of the dense parameters.

Usually each device gets all sums and updates all parameters. With `Learner.shard_dense_optimizer`
it gets one part of the sums, has this part of the optimizer's state, and updates this part of the
parameters; then it gathers the others. This is the first stage of ZeRO (arXiv 1910.02054). The
arrays keep their shapes, as arrays of the whole mesh, and XLA adds the collectives that an
optimizer needs for norms of whole parameters. So the results of any optax optimizer stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from dlrm_jax.embedding import comm_dtype
from dlrm_jax.training import dense_split
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.member_losses import MemberLoss
from dlrm_jax.training.ranking_losses import RankingLoss

# The numbers from which on gradients aren't copied to be joined with others, see
# `Backend.flat_all_reduce`. XLA's CPU backend adds up all arrays in one all-reduce. A step of
# `kaggle` with 2048 samples in bfloat16 took 3 to 6 % longer on 8 emulated devices if all gradients
# were joined, and longer still if none were.
_LARGE = 2**15


def weight_first(learner: Learner) -> bool:
    """Whether a step divides the weights of samples by their sum before the model.

    Several labels have sums of their own, and other losses weights of their own.
    """
    if len(learner.labels) > 1 or isinstance(learner.loss, RankingLoss | MemberLoss):
        return False
    return learner.backend.weight_first and learner.axes.device_count > 1


def sum_over_devices(
    learner: Learner, sums: tuple[Float[Array, "D M"] | None, Float[Array, "D M"], Any]
) -> tuple[Any, Float[Array, ""], Any]:
    """The sums over the devices of the weight, the loss and its gradients.

    With `Learner.dense_comm_dtype`, each device rounds its gradients once, and sends each part of
    them to one device, which adds up in float32. If each device needs all sums, these are rounded
    once more on their way. Gradients that can't be split (see `dense_split`), the weight and the
    loss aren't rounded.

    Args:
        learner: learner of the step.
        sums: Σ wᵢ, or None if it is known, Σ wᵢ lossᵢ and its gradients by the samples of each
            device, [D, M, ...].

    Returns:
        The same by all samples. The gradients are split if the optimizer is.
    """
    axes, dtype, keep_split = learner.axes, learner.dense_comm_dtype, learner.shard_dense_optimizer
    if axes.device_count == 1:
        return jax.tree.map(lambda x: x[0, 0], sums)
    shapes = [x.shape[2:] for x in jax.tree.leaves(sums)]
    scatters = keep_split or dtype is not None
    split = [scatters and dense_split.is_split(axes, shape) for shape in shapes]

    def run(sums: Any) -> Any:
        leaves, tree = jax.tree.flatten(sums)
        own = [x[0, 0] for x in leaves]
        whole = [i for i, is_split in enumerate(split) if not is_split]
        parts = [i for i, is_split in enumerate(split) if is_split]
        summed = _at_once(
            learner,
            lambda x: jax.lax.psum(x, axes.split),
            [own[i].reshape(-1) for i in whole],
            _LARGE,
        )
        for i, x in zip(whole, summed, strict=True):
            own[i] = x.reshape(shapes[i])
        scattered = _reduce_scattered(learner, [dense_split.blocks(axes, own[i]) for i in parts])
        if not keep_split:
            scattered = _gathered(learner, scattered, [shapes[i] for i in parts], dtype)
        for i, x in zip(parts, scattered, strict=True):
            own[i] = x.reshape(dense_split.block_shape(axes, shapes[i])) if keep_split else x
        return jax.tree.unflatten(tree, own)

    out_specs = jax.tree.map(
        lambda x: dense_split.spec(axes, x.shape[2:]) if keep_split else PartitionSpec(), sums
    )
    # Unchecked, as the check can't know that what is gathered is equal on all devices.
    return jax.shard_map(
        run, mesh=learner.mesh, in_specs=axes.per_device, out_specs=out_specs, check_vma=False
    )(sums)


def update(
    learner: Learner, state: TrainState, grads: Any, rate_factor: Float[Array, ""] | None = None
) -> tuple[Any, Any]:
    """The dense parameters after an update, and the state of their optimizer.

    Args:
        learner: learner of the state.
        state: state before the update.
        grads: gradients of the parameters, split as `sum_over_devices` gives them.
        rate_factor: factor of the changes; None for 1.
    """
    axes, params, is_split = learner.axes, state.params, learner.shard_dense_optimizer
    with jax.named_scope("optimizer"):
        if is_split:
            params = dense_split.constrained(axes, params)
        updates, optimizer = learner.dense_optimizer.update(grads, state.optimizer, params)
        if rate_factor is not None:  # as `optax.contrib.reduce_on_plateau` does it
            updates = jax.tree.map(lambda u: (u * rate_factor).astype(u.dtype), updates)
        params = optax.apply_updates(params, updates)
    if is_split:
        params = _whole(learner, dense_split.constrained(axes, params))
        optimizer = dense_split.constrained(axes, optimizer)
    return params, optimizer


def _whole(learner: Learner, params: Any) -> Any:
    """Parameters that are split, gathered by all devices."""
    axes = learner.axes
    leaves, tree = jax.tree.flatten(params)
    shapes = [x.shape for x in leaves]
    parts = [i for i, shape in enumerate(shapes) if dense_split.is_split(axes, shape)]

    def run(*own: Array) -> list[Array]:
        flat = [x.reshape(-1) for x in own]
        return _gathered(learner, flat, [shapes[i] for i in parts], None)

    gathered = jax.shard_map(
        run,
        mesh=learner.mesh,
        in_specs=tuple(dense_split.spec(axes, shapes[i]) for i in parts),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(*(leaves[i] for i in parts))
    for i, x in zip(parts, gathered, strict=True):
        leaves[i] = x
    return jax.tree.unflatten(tree, leaves)


def _reduce_scattered(learner: Learner, blocks: Sequence[Array]) -> list[Array]:
    """This device's blocks, [k] each, of arrays [D · M, k] that are summed over all devices."""
    axes, dtype = learner.axes.split, learner.dense_comm_dtype
    if dtype is None:
        return _at_once(learner, lambda x: jax.lax.psum_scatter(x, axes), blocks)
    packed = [comm_dtype.pack(x, dtype) for x in blocks]
    received = _at_once(learner, lambda x: jax.lax.all_to_all(x, axes, 0, 0), packed)
    found = []
    for x, y in zip(blocks, received, strict=True):
        wide = comm_dtype.unpack(y, dtype, jnp.promote_types(x.dtype, jnp.float32))
        found.append(jnp.sum(wide, axis=0).astype(x.dtype))
    return found


def _gathered(
    learner: Learner,
    parts: Sequence[Array],
    shapes: Sequence[Sequence[int]],
    dtype: str | None,
) -> list[Array]:
    """The arrays of these shapes; a device has a block of each, [k], and sends it as ``dtype``."""
    packed = [comm_dtype.pack(x, dtype) for x in parts]
    found = _at_once(learner, lambda x: jax.lax.all_gather(x, learner.axes.split), packed)
    return [
        dense_split.joined(learner.axes, comm_dtype.unpack(x, dtype, part.dtype), shape)
        for x, part, shape in zip(found, parts, shapes, strict=True)
    ]


def _at_once(
    learner: Learner,
    collective: Callable[[Any], Any],
    arrays: Sequence[Array],
    large: float = math.inf,
) -> list[Array]:
    """Runs a collective on arrays [..., k], joined to one where that is faster.

    Those of ``large`` numbers or more are given beside the joined one, in the same call.
    """
    if not arrays or not learner.backend.flat_all_reduce:
        return collective(list(arrays))
    groups = [[i] for i, x in enumerate(arrays) if x.size >= large]
    small = [i for i, x in enumerate(arrays) if x.size < large]
    groups += [small] if small else []
    dtype = jnp.result_type(*arrays)
    joined = [jnp.concatenate([arrays[i].astype(dtype) for i in each], -1) for each in groups]
    found: dict[int, Array] = {}
    for each, result in zip(groups, collective(joined), strict=True):
        ends = np.cumsum([arrays[i].shape[-1] for i in each])[:-1]
        found |= zip(each, jnp.split(result, ends, axis=-1), strict=True)
    return [found[i].astype(x.dtype) for i, x in enumerate(arrays)]

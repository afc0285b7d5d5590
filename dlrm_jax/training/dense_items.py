"""The part of a state that isn't tables, as named arrays: how checkpoints and journals have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dlrm_jax.mesh import put_whole
from dlrm_jax.training.learner import TrainState


def dense_items(state: TrainState) -> dict[str, Any]:
    """The tree of a state without tables, as it is written; a model state only if there is one.

    The optimizer's state is written as numbered leaves, without optax's types.
    """
    leaves = jax.tree.leaves(state.optimizer)
    items = {"step": state.step, "params": state.params}
    items |= {"optimizer": {str(i): leaf for i, leaf in enumerate(leaves)}}
    return items | ({"model_state": state.model_state} if state.model_state else {})


def with_items(specs: TrainState, items: Mapping[str, Any], embedding: Any) -> TrainState:
    """The state of a tree that `dense_items` gave, and of tables.

    Args:
        specs: shapes of such a state.
        items: the tree.
        embedding: tables and their optimizer state.
    """
    optimizer = items.get("optimizer", {})
    leaves = [optimizer[str(i)] for i in range(len(optimizer))]
    return TrainState(
        items["step"],
        items["params"],
        jax.tree.unflatten(jax.tree.structure(specs.optimizer), leaves),
        embedding,
        items.get("model_state", {}),
    )


def item_name(keys: tuple[Any, ...]) -> str:
    """The name of an array of the tree: its dotted path."""
    return ".".join(str(key.key) for key in keys)


def host_items(state: TrainState) -> dict[str, np.ndarray]:
    """Copies of the arrays on the host, by `item_name`; processes make them together."""
    leaves = jax.tree.leaves_with_path(dense_items(state))
    return {item_name(keys): np.array(_whole(leaf)) for keys, leaf in leaves}


def _whole(leaf: Any) -> Any:
    """An array that this process has all of; one that processes have between them is copied."""
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return jax.block_until_ready(jax.device_put(leaf, everywhere))  # see `processes._exchanged`


def from_host_items(
    specs: TrainState, items: Mapping[str, np.ndarray], embedding: Any
) -> TrainState:
    """The state of what `host_items` gave, and of tables.

    Args:
        specs: shapes, dtypes and shardings of such a state.
        items: arrays by name.
        embedding: tables and their optimizer state.
    """

    def placed(keys: tuple[Any, ...], spec: jax.ShapeDtypeStruct) -> Any:
        return put_whole(items[item_name(keys)], spec.sharding)  # pyright: ignore

    return with_items(specs, jax.tree.map_with_path(placed, dense_items(specs)), embedding)

"""The arrays of one checkpoint, see `checkpoint`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from dlrm_jax.errors import UserError
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import FORMATS
from dlrm_jax.training.orbax_io import load, release_memory, save

# Arrays are collected until they take as many bytes, then written together: one write for each
# of many small tables would take longer than their bytes.
_ITEM_BYTES = 2**26

NOT_FINITE = (
    "aren't finite, so this step isn't saved; lower the learning rate or clip gradients. Earlier "
    "checkpoints are intact"
)
"""End of the sentence that refuses to save numbers."""


def array_name(metadata: Mapping[str, Any], key: str) -> str:
    """The name of a table's array in a checkpoint, by the format of the checkpoint."""
    return FORMATS[metadata["format"]].get(key, key)


def load_table(
    path: Path,
    metadata: Mapping[str, Any],
    table: str,
    wanted: Mapping[str, jax.ShapeDtypeStruct | np.ndarray],
) -> dict[str, Array | np.ndarray]:
    """Reads the arrays of one table.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        table: name of the table.
        wanted: shapes, dtypes and shardings by key, see `EmbeddingCollection.array_specs`; for
            results in NumPy, NumPy arrays of any values.

    Raises:
        UserError: the checkpoint has no such table, or one of another shape.
    """
    arrays = {}
    for key, abstract in wanted.items():
        stored = array_name(metadata, key)
        entry = metadata["arrays"].get(f"{table}/{stored}")
        if entry is None:
            raise UserError(f"checkpoint {path} has no array {key!r} of a table {table!r}")
        if tuple(entry["shape"]) != abstract.shape:
            raise UserError(
                f"checkpoint {path}: {key!r} of table {table} has shape {tuple(entry['shape'])}, "
                f"expected {abstract.shape}"
            )
        if math.prod(abstract.shape) * abstract.dtype.itemsize >= _ITEM_BYTES:
            release_memory()  # of the table before
        item = load(path / "tables" / entry["item"], {table: {stored: abstract}}, partial=True)
        arrays[key] = item[table][stored]
    return arrays


def load_model(
    path: Path, metadata: Mapping[str, Any], params: Mapping[Any, Any], state: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Reads parameters and other state of the dense model.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        params: shapes, dtypes and shardings of the parameters to read, as nested dicts.
        state: shapes, dtypes and shardings of other state, see `TrainState.model_state`.

    Raises:
        UserError: the checkpoint has no such parameter or state, or one of another shape.
    """
    _check_shapes(path, metadata, "params", params)
    check_model_state(path, metadata, state)
    wanted = {name: tree for name, tree in (("params", params), ("model_state", state)) if tree}
    found = load(path / "dense", wanted, partial=True) if wanted else {}
    return found.get("params", {}), found.get("model_state", {})


def check_model_state(path: Path, metadata: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Checks that a checkpoint has the model's state; those of earlier versions have none.

    Raises:
        UserError: an array is missing or of another shape.
    """
    _check_shapes(path, {"model_state": {}, **metadata}, "model_state", state)


def _check_shapes(
    path: Path, metadata: Mapping[str, Any], kind: str, wanted: Mapping[Any, Any]
) -> None:
    for name, array in flatten(wanted).items():
        found = metadata[kind].get(name)
        if found is None or tuple(found) != array.shape:
            there = "no such array" if found is None else f"shape {tuple(found)}"
            raise UserError(
                f"checkpoint {path}: expected {name} of shape {array.shape}, it has {there}"
            )


def save_tables(directory: Path, learner: Learner, state: TrainState) -> dict[str, dict[str, Any]]:
    """Writes all tables; returns the item and shape of each array by ``table/key``.

    Raises:
        UserError: the rows of a table aren't finite.
    """
    index: dict[str, dict[str, Any]] = {}
    pending: dict[str, dict[str, Array]] = {}
    items = 0

    def flush() -> None:
        nonlocal items
        if pending:
            save(directory / str(items), pending)
            pending.clear()
            release_memory()
            items += 1

    size = 0
    for table, key, array in learner.collection.iter_arrays(state.embedding):
        if key == "table" and not _is_finite(array):
            raise UserError(f"the rows of table {table.name} {NOT_FINITE}")
        # Bytes on all devices: slots with one number per row are whole on each.
        size += sum(shard.data.nbytes for shard in array.addressable_shards)
        pending.setdefault(table.name, {})[key] = array
        index[f"{table.name}/{key}"] = {"item": str(items), "shape": array.shape}
        del array  # otherwise it would live on while the next one is made
        if size >= _ITEM_BYTES:
            flush()
            size = 0
    flush()
    return index


@jax.jit  # it makes no array
def _is_finite(array: Array) -> Array:
    return jnp.isfinite(array).all()


def dense_items(state: TrainState) -> dict[str, Any]:
    """The tree of a state without tables, as it is written; a model state only if there is one.

    The optimizer's state is written as numbered leaves, without optax's types.
    """
    leaves = jax.tree.leaves(state.optimizer)
    items = {"step": state.step, "params": state.params}
    items |= {"optimizer": {str(i): leaf for i, leaf in enumerate(leaves)}}
    return items | ({"model_state": state.model_state} if state.model_state else {})


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Converts nested dicts to one dict, with dotted paths as keys."""
    return {".".join(map(str, path)): leaf for path, leaf in flatten_dict(dict(tree)).items()}

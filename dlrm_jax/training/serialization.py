"""The arrays of one checkpoint, see `checkpoint`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jaxtyping import Array

from dlrm_jax.embedding import Table
from dlrm_jax.errors import OtherShapeError, UserError
from dlrm_jax.mesh import put_whole
from dlrm_jax.training.checksums import LoadedSums, SavedSums
from dlrm_jax.training.dense_items import dense_items, item_name, with_items
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.memory import release_memory
from dlrm_jax.training.metadata import FORMATS

ITEM_BYTES = 2**26
"""Bytes of arrays that are written together: one write for each of many small tables would take
longer than their bytes."""

Leaf = jax.ShapeDtypeStruct | np.ndarray
"""A shape, dtype and sharding to load; an array of NumPy, with any values, for one of NumPy."""

NOT_FINITE = (
    "aren't finite, so this step isn't saved; lower the learning rate or clip gradients. Earlier "
    "checkpoints are intact"
)
"""End of the sentence that refuses to save numbers."""


def orbax() -> ModuleType:
    """`orbax_io`, imported here: it takes a fifth of a second, and not all have checkpoints.

    Raises:
        UserError: Orbax is missing or broken.
    """
    try:
        from dlrm_jax.training import orbax_io
    except Exception as error:  # a version for another one of JAX may fail in any way
        raise UserError(
            f"checkpoints need Orbax, which can't be imported ({type(error).__name__}: {error}); "
            f"run pip install -e . in the checkout, or train without --workdir"
        ) from error
    return orbax_io


def array_name(metadata: Mapping[str, Any], key: str) -> str:
    """The name of a table's array in a checkpoint, by the format of the checkpoint."""
    return FORMATS[metadata["format"]].get(key, key)


def load_rows(
    path: Path,
    metadata: Mapping[str, Any],
    table: str,
    wanted: Mapping[str, jax.ShapeDtypeStruct | np.ndarray],
    sums: LoadedSums,
) -> dict[str, Array | np.ndarray]:
    """Reads the arrays of one table, by row. With dynamic ids, see `rows_by_id`, too.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        table: name of the table.
        wanted: shapes, dtypes and shardings by key, see `EmbeddingCollection.array_specs`; for
            results in NumPy, NumPy arrays of any values.
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        OtherShapeError: the checkpoint has no such table, or one of another shape.
    """
    arrays = {}
    for key, abstract in wanted.items():
        stored = array_name(metadata, key)
        entry = metadata["arrays"].get(f"{table}/{stored}")
        if entry is None:
            raise OtherShapeError(f"checkpoint {path} has no array {key!r} of a table {table!r}")
        if tuple(entry["shape"]) != abstract.shape:
            raise OtherShapeError(
                f"checkpoint {path}: {key!r} of table {table} has shape {tuple(entry['shape'])}, "
                f"expected {abstract.shape}"
            )
        if math.prod(abstract.shape) * abstract.dtype.itemsize >= ITEM_BYTES:
            release_memory()  # of the table before
        name = f"tables/{table}/{stored}"
        saved = _as_saved(abstract, sums.dtype(name, abstract.dtype))
        wanted_of_item = {table: {stored: saved}}
        item = orbax().load(path / "tables" / entry["item"], wanted_of_item, partial=True)
        sums.add(name, item[table][stored])
        arrays[key] = _as_wanted(item.pop(table).pop(stored), abstract)
    return arrays


def _as_saved(wanted: Leaf, dtype: np.dtype) -> Leaf:
    """What to load so that it has the bits that were saved: conversions would change them."""
    if dtype == wanted.dtype:
        return wanted
    if isinstance(wanted, np.ndarray) or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        return _on_host(wanted, dtype)
    return jax.ShapeDtypeStruct(wanted.shape, dtype, sharding=wanted.sharding)


def _on_host(wanted: Leaf, dtype: np.dtype) -> np.ndarray:
    """An array for a load that gives one of NumPy; it takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), wanted.shape)


def _as_wanted(loaded: Array | np.ndarray, wanted: Leaf) -> Array | np.ndarray:
    if isinstance(wanted, np.ndarray):
        return np.asarray(loaded).astype(wanted.dtype, copy=False)
    dtype = jax.dtypes.canonicalize_dtype(wanted.dtype)
    if isinstance(loaded, jax.Array):
        return loaded if loaded.dtype == dtype else loaded.astype(dtype)
    assert isinstance(wanted.sharding, NamedSharding)
    return put_whole(np.asarray(loaded).astype(dtype, copy=False), wanted.sharding)


def load_state(
    path: Path,
    metadata: Mapping[str, Any],
    learner: Learner,
    sums: LoadedSums,
    tables: Callable[[Table], Mapping[str, Any]],
    seed: int = 0,
) -> TrainState:
    """Reads a state onto a learner's mesh and plan.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        learner: learner of the state.
        sums: checksums of what is loaded; call its ``check`` afterwards.
        tables: function that reads the arrays of a table, see `EmbeddingCollection.from_arrays`.
        seed: seed of the tables that it doesn't give.

    Raises:
        UserError: the checkpoint is of another model, or can't be read.
        DamagedCheckpointError: files are missing or damaged.
    """
    specs = learner.state_specs()
    check_model_state(path, metadata, specs.model_state)
    dense = load_dense(path, dense_items(specs), sums)
    return with_items(specs, dense, learner.collection.from_arrays(tables, seed))


def load_dense(path: Path, wanted: Any, sums: LoadedSums, partial: bool = False) -> Any:
    """Reads a tree of the arrays that aren't tables.

    Args:
        path: directory of the checkpoint.
        wanted: tree of shapes, dtypes and shardings, see `dense_items`.
        sums: checksums of what is loaded; call its ``check`` when all is.
        partial: whether ``wanted`` may name only some of the arrays.
    """
    saved = jax.tree.map_with_path(
        lambda keys, leaf: _on_host(leaf, sums.dtype(_dense_name(keys), leaf.dtype)),
        _without_empty(wanted),
    )
    loaded = orbax().load(path / "dense", saved, partial) if saved else {}
    for keys, array in jax.tree.leaves_with_path(loaded):
        sums.add(_dense_name(keys), np.asarray(array))
    return _completed(wanted, loaded)


def _without_empty(tree: Any) -> Any:
    """Nested dicts without the arrays that have no numbers, which Orbax doesn't write.

    Without dense features, the first layer of DLRM's bottom MLP has such a kernel.
    """
    if not isinstance(tree, Mapping):
        return tree
    is_empty = {key: 0 in getattr(value, "shape", ()) for key, value in tree.items()}
    return {key: _without_empty(value) for key, value in tree.items() if not is_empty[key]}


def _completed(wanted: Any, loaded: Any) -> Any:
    """What is wanted, of nested dicts that `_without_empty` may have shortened."""
    if not isinstance(wanted, Mapping):
        return _as_wanted(loaded, wanted)
    return {
        key: _completed(leaf, loaded[key] if key in loaded else np.zeros(leaf.shape, leaf.dtype))
        for key, leaf in wanted.items()
    }


def _dense_name(keys: tuple[Any, ...]) -> str:
    return f"dense/{item_name(keys)}"


def save_dense(path: Path, state: TrainState, sums: SavedSums) -> None:
    """Writes the arrays that aren't tables."""
    items = _without_empty(dense_items(state))
    for keys, array in jax.tree.leaves_with_path(items):
        sums.add(_dense_name(keys), array)
    orbax().save(path / "dense", items)


def load_model(
    path: Path,
    metadata: Mapping[str, Any],
    params: Mapping[Any, Any],
    state: Mapping[str, Any],
    sums: LoadedSums,
) -> tuple[Any, Any]:
    """Reads parameters and other state of the dense model.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        params: shapes, dtypes and shardings of the parameters to read, as nested dicts.
        state: shapes, dtypes and shardings of other state, see `TrainState.model_state`.
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        OtherShapeError: the checkpoint has no such parameter or state, or one of another shape.
    """
    _check_shapes(path, metadata, "params", params)
    check_model_state(path, metadata, state)
    wanted = {name: tree for name, tree in (("params", params), ("model_state", state)) if tree}
    found = load_dense(path, wanted, sums, partial=True) if wanted else {}
    return found.get("params", {}), found.get("model_state", {})


def check_model_state(path: Path, metadata: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Checks that a checkpoint has the model's state; those of earlier versions have none.

    Raises:
        OtherShapeError: an array is missing or of another shape.
    """
    _check_shapes(path, {"model_state": {}, **metadata}, "model_state", state)


def _check_shapes(
    path: Path, metadata: Mapping[str, Any], kind: str, wanted: Mapping[Any, Any]
) -> None:
    for name, array in flatten(wanted).items():
        found = metadata[kind].get(name)
        if found is None or tuple(found) != array.shape:
            there = "no such array" if found is None else f"shape {tuple(found)}"
            raise OtherShapeError(
                f"checkpoint {path}: expected {name} of shape {array.shape}, it has {there}"
            )


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Converts nested dicts to one dict, with dotted paths as keys."""
    return {".".join(map(str, path)): leaf for path, leaf in flatten_dict(dict(tree)).items()}

"""Initial values of chosen tables and layers from a checkpoint or from arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlrm_jax.embedding import Table
from dlrm_jax.errors import UserError
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.serialization import (
    flatten,
    load_params,
    load_table,
    read_metadata,
    unflatten,
)


def warm_start(learner: Learner, seed: int, source: Path, names: Sequence[str]) -> TrainState:
    """A new state whose named parts come from elsewhere; optimizers start afresh.

    Args:
        learner: whose state to make.
        seed: of all else.
        source: a checkpoint (the directory with its step as the name), or a directory of
            ``NAME.npy``: ``C1.npy`` [rows, dim], ``bottom.layers.0.kernel.npy``, …
        names: tables (``C1``) and layers (``bottom``, ``top.layers.0``, …).

    Raises:
        UserError: a name is unknown here or there, or the shapes differ.
    """
    if not source.is_dir():
        raise UserError(f"warm start: expected a directory, {source} is none")
    tables = [name for name in names if name in learner.collection.tables]
    params = jax.eval_shape(lambda: learner.init_params(seed))
    wanted = flatten(params)
    chosen = {
        path: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=learner.replicated)
        for path, shape in wanted.items()
        if any(f"{path}.".startswith(f"{name}.") for name in names)
    }
    for name in set(names) - set(tables):
        if not any(f"{path}.".startswith(f"{name}.") for path in chosen):
            raise UserError(
                f"warm start: {name!r} is no table and no layer; layers are {', '.join(wanted)}"
            )
    if (source / "metadata.json").exists():
        metadata = read_metadata(source)

        def table_weights(table: Table) -> Mapping[str, Any]:
            wanted = {"weights": learner.collection.logical(table.name)["weights"]}
            return load_table(source, metadata, table.name, wanted)

        _check_shapes(chosen, {k: tuple(v) for k, v in metadata["params"].items()})
        loaded = flatten(load_params(source, unflatten(chosen))) if chosen else {}
    else:

        def table_weights(table: Table) -> Mapping[str, Any]:
            return {"weights": _read(source, table.name)}

        loaded = {path: _read(source, path) for path in chosen}
        _check_shapes(chosen, {path: array.shape for path, array in loaded.items()})

    embedding = learner.collection.build(
        lambda table: table_weights(table) if table.name in tables else {}, seed
    )
    state = learner.init(seed, embedding)
    merged = flatten(state.params)
    for path, array in loaded.items():
        merged[path] = jax.device_put(
            np.asarray(array).astype(merged[path].dtype), learner.replicated
        )
    params = unflatten(merged)
    return TrainState(state.step, params, state.optimizer, embedding)


def _check_shapes(wanted: Mapping[str, Any], found: Mapping[str, tuple[int, ...]]) -> None:
    for path, abstract in wanted.items():
        if found.get(path) != abstract.shape:
            raise UserError(
                f"warm start: {path} must have shape {abstract.shape}, the source has "
                f"{found.get(path, 'no such layer')}"
            )


def _read(directory: Path, name: str) -> np.ndarray:
    path = directory / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"warm start: cannot read {path}: {error}") from error

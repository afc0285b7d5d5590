"""Initial values of chosen tables and layers from a checkpoint or from arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from dlrm_jax.artifact.manifest import is_artifact
from dlrm_jax.data.formats.npy import map_npy
from dlrm_jax.data.metadata import of_data
from dlrm_jax.embedding import Table
from dlrm_jax.embedding.initial_values import initial_values
from dlrm_jax.embedding.table_io import check_array
from dlrm_jax.errors import OtherShapeError, UserError
from dlrm_jax.feature_names import file_name
from dlrm_jax.mesh import put_whole
from dlrm_jax.saved_config import OtherShapes
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.kept_data import find_kept
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.saved_names import NamesThere
from dlrm_jax.training.serialization import flatten, load_model, load_rows
from dlrm_jax.training.warm_start_checks import (
    EVERYTHING,
    ParameterPath,
    check_collisions,
    check_labels,
    check_not_shared,
    check_only_tables,
    saved_rows,
    saved_tables,
)


def warm_start(
    learner: Learner,
    seed: int,
    source: Path,
    names: Sequence[str],
    same_ids: Collection[str] | None = None,
    there: NamesThere | None = None,
    settings: OtherShapes | None = None,
    labels: Sequence[str] = (),
) -> TrainState:
    """Makes a new state with named parts from elsewhere; optimizers start anew.

    A table may have more rows than in the checkpoint if the ids of the data continue those that
    the checkpoint was trained with. The further rows get the initial values that they have in any
    new table of this size.

    Args:
        learner: learner of the new state.
        seed: seed of all other values.
        source: checkpoint (the directory with its step as the name), artifact, or directory of
            ``NAME.npy``: ``item.npy`` [rows, dim], ``bottom.layers.0.kernel.npy``, …
        names: tables (``item``) and layers (``bottom``, ``top.layers.0``, …, with their
            statistics); `EVERYTHING` alone for all.
        same_ids: fingerprints of the data whose ids mean the same as this run's: its own and
            those that it continues, see `data.metadata.Metadata`. None if that isn't known:
            the caller must then know it, and tables can't grow.
        there: names in the checkpoint of what has another one here; None if all are the same.
        settings: settings of shapes that differ, for messages; None if that isn't known.
        labels: names of the labels here; none for one without a name.

    Raises:
        UserError: a name is unknown here or there, the shapes differ, an array has no real
            numbers, ids or labels don't mean the same as in the checkpoint, or layers are those
            of two towers.
    """
    if not source.is_dir():
        raise UserError(f"warm start: expected a directory, {source} is none")
    there, settings = there or NamesThere(), settings or OtherShapes()
    every = EVERYTHING in names
    if every and len(names) > 1:
        raise UserError(
            f"warm start: {EVERYTHING!r} stands for all tables and layers, got {','.join(names)}; "
            f"leave the other names out"
        )
    tables = [name for name in learner.collection.tables if every or name in names]
    specs = learner.state_specs()
    params = _chosen(specs.params, names)
    statistics = _chosen(specs.model_state.get("statistics", {}), names)
    chosen = params | statistics
    for name in set() if every else set(names) - set(tables):
        if not any(_is_in(path, name) for path in chosen):
            check_not_shared(learner, name)
            raise UserError(
                f"warm start: {name!r} is no table and no layer; tables are "
                f"{', '.join(learner.collection.tables)}, layers "
                f"{', '.join(flatten(specs.params))}"
            )
    if (source / "metadata.json").exists():
        metadata = read_metadata(source)
        check_only_tables(source, metadata, params)
        check_labels(labels, source, metadata, names, params)
        sums = LoadedSums(source, metadata)

        def table_arrays(table: Table) -> Mapping[str, Any]:
            with _explained(settings.tables):
                return {
                    "table": _trained(learner, seed, source, metadata, table, same_ids, sums, there)
                }

        of = {path: there.layer(path, metadata["params"]) for path in params}
        read = {of[path]: spec for path, spec in params.items()}
        wanted = {"statistics": unflatten_dict(statistics)} if statistics else {}
        with _explained(settings.layers):
            found, other = load_model(source, metadata, unflatten_dict(read), wanted, sums)
        by_path = _by_path(found)
        loaded = {path: by_path[of[path]] for path in params}
        loaded |= _by_path(other.get("statistics", {}))
    elif is_artifact(source):
        from dlrm_jax.training.artifact_arrays import ArtifactArrays  # with Polars

        arrays, sums = ArtifactArrays(source), LoadedSums(source, {})  # it has its own checksums
        check_labels(labels, source, arrays.metadata, names, params)

        def table_arrays(table: Table) -> Mapping[str, Any]:
            check_collisions(learner, source, arrays.metadata, table.name, there)
            _has_same_ids(source, arrays.metadata, table, table.rows, same_ids)
            spec = learner.collection.array_specs(table.name)["table"]
            return {"table": _checked(source, table.name, arrays.table(table.name), spec)}

        loaded = {}
        for path, spec in chosen.items():
            name = _dotted(path)
            loaded[path] = _checked(source, name, arrays.layer(name), spec)
    else:
        sums = LoadedSums(source, {})  # files of others have no checksums

        def table_arrays(table: Table) -> Mapping[str, Any]:
            spec = learner.collection.array_specs(table.name)["table"]
            return {"table": _read(source, table.name, spec)}

        loaded = {path: _read(source, _dotted(path), spec) for path, spec in chosen.items()}

    embedding = learner.collection.from_arrays(
        lambda table: table_arrays(table) if table.name in tables else {}, seed
    )
    sums.check()
    state = learner.init(seed, embedding)
    placed = {
        path: put_whole(np.asarray(array).astype(chosen[path].dtype), learner.replicated)
        for path, array in loaded.items()
    }

    def started(tree: Mapping[Any, Any]) -> Any:
        return jax.tree.map_with_path(lambda path, x: placed.get(_keys(path), x), tree)

    model_state = dict(state.model_state)
    if statistics:
        model_state["statistics"] = started(model_state["statistics"])
    return dataclasses.replace(state, params=started(state.params), model_state=model_state)


@contextlib.contextmanager
def _explained(settings: str) -> Iterator[None]:
    """Context that adds settings that differ to an error about arrays of other shapes."""
    try:
        yield
    except OtherShapeError as error:
        if not settings:
            raise
        raise UserError(f"{error}; settings differ: {settings}") from error


def _chosen(tree: Mapping[Any, Any], names: Sequence[str]) -> dict[ParameterPath, Any]:
    """The arrays of the layers with these names, by path."""
    return {
        path: array
        for path, array in _by_path(tree).items()
        if EVERYTHING in names or any(_is_in(path, name) for name in names)
    }


def _by_path(tree: Mapping[Any, Any]) -> dict[ParameterPath, Any]:
    return {_keys(path): array for path, array in jax.tree.leaves_with_path(tree)}


def _keys(path: tuple[Any, ...]) -> ParameterPath:
    return tuple(entry.key for entry in path)


def _dotted(path: ParameterPath) -> str:
    return ".".join(map(str, path))


def _is_in(path: ParameterPath, layer: str) -> bool:
    return f"{_dotted(path)}.".startswith(f"{layer}.")


def _trained(
    learner: Learner,
    seed: int,
    source: Path,
    metadata: Mapping[str, Any],
    table: Table,
    same_ids: Collection[str] | None,
    sums: LoadedSums,
    there: NamesThere,
) -> Array | np.ndarray:
    """Reads a table from a checkpoint, where it may have fewer rows."""
    wanted, name = learner.collection.array_specs(table.name)["table"], there.table(table.name)
    rows = saved_rows(metadata, name)
    if rows is None:
        raise UserError(
            f"warm start: {source} has no table {table.name!r}; its tables are "
            f"{', '.join(saved_tables(metadata))}; name only what it has in --warm_start_names"
        )
    check_collisions(learner, source, metadata, table.name, there)
    known = _has_same_ids(source, metadata, table, rows, same_ids)
    if rows >= table.rows or not known:
        return load_rows(source, metadata, name, {"table": wanted}, sums)["table"]
    first = jax.ShapeDtypeStruct((rows, table.dim), wanted.dtype, sharding=wanted.sharding)
    trained = load_rows(source, metadata, name, {"table": first}, sums)["table"]
    grow = jax.jit(functools.partial(_grow, table, seed), out_shardings=wanted.sharding)
    return jax.block_until_ready(grow(trained))


def _has_same_ids(
    source: Path,
    metadata: Mapping[str, Any],
    table: Table,
    rows: int,
    same_ids: Collection[str] | None,
) -> bool:
    """Whether it is known that the ids of a source mean the same here.

    Raises:
        UserError: they don't.
    """
    noted = metadata["identity"].get("data")
    if noted == "":  # a model of others, as arrays of others
        return False
    known = same_ids is not None and of_data(str(noted)) in same_ids
    if same_ids is not None and not known:
        kept = find_kept(source)  # two towers and artifacts have none
        where = "" if kept else f", where OLD_DIRECTORY is what {source} was trained on"
        raise UserError(
            f"warm start: the ids of these data aren't those of {source}, and don't continue "
            f"them: in table {table.name} (with {rows} rows there, {table.rows} here) an id may "
            f"mean different values. Prepare the data with python -m dlrm_jax preprocess "
            f"--grow={kept or 'OLD_DIRECTORY'}{where}"
        )
    return known


def _grow(table: Table, seed: int, first: Float[Array, "n dim"]) -> Float[Array, "rows dim"]:
    """Makes a table from its first rows; the others get initial values."""
    return jax.lax.dynamic_update_slice_in_dim(
        initial_values([table], seed)[table.name], first, 0, axis=0
    )


def _read(directory: Path, name: str, spec: jax.ShapeDtypeStruct) -> np.ndarray:
    path = directory / f"{file_name(name)}.npy"
    try:
        array = map_npy(path)
    except UserError as error:
        raise UserError(f"warm start: {error}") from error
    return _checked(path, "", array, spec)


def _checked(source: Path, name: str, array: np.ndarray, spec: jax.ShapeDtypeStruct) -> np.ndarray:
    check_array(f"warm start: {source / name}", array, spec)
    return array

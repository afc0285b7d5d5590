"""The maps of tables with dynamic ids in a checkpoint: plain arrays by row, beside the rows.

The metadata has, by the name of a map, its tables, its policy, and shape and dtype of its arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.parted_map import PartedMap
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import DamagedCheckpointError, OtherShapeError, UserError
from dlrm_jax.training.checksums import LoadedSums, SavedSums
from dlrm_jax.training.serialization import orbax

NAME = "id_maps"
"""The directory in a checkpoint, and the key in its metadata."""

Arrays = dict[str, np.ndarray]


def save_id_maps(path: Path, maps: IdMaps | None, sums: SavedSums) -> dict[str, dict[str, Any]]:
    """Writes the arrays of all maps; returns what the metadata has of them.

    Args:
        path: directory of the checkpoint.
        maps: maps of the state that is saved; None without dynamic ids.
        sums: checksums of what is written.
    """
    found = maps.tables.items() if maps else ()
    noted = {
        name: {
            "tables": [table.name for table in tables],
            "policy": dataclasses.asdict(tables[0].ids),  # pyright: ignore[reportArgumentType]
        }
        for name, tables in found
    }
    return write_id_maps(path, noted, maps.arrays() if maps else {}, sums)


def write_id_maps(
    path: Path,
    noted: Mapping[str, Mapping[str, Any]],
    arrays: Mapping[str, Arrays],
    sums: SavedSums,
) -> dict[str, dict[str, Any]]:
    """Writes the arrays of maps; returns what the metadata has of them.

    Args:
        path: directory of the checkpoint.
        noted: tables and policy of each map, by its name; other entries are replaced.
        arrays: arrays of each map.
        sums: checksums of what is written.
    """
    # Earlier commits noted an empty sketch, which Orbax can't write.
    arrays = {name: {key: x for key, x in own.items() if x.size} for name, own in arrays.items()}
    for name, own in arrays.items():
        for key, array in own.items():
            sums.add(f"{NAME}/{name}/{key}", array)
    if arrays:
        orbax().save(path / NAME, arrays)
    return {
        name: {
            **noted[name],
            "arrays": {key: {"shape": x.shape, "dtype": str(x.dtype)} for key, x in own.items()},
        }
        for name, own in arrays.items()
    }


def load_id_maps(
    path: Path, metadata: Mapping[str, Any], maps: IdMaps | None, sums: LoadedSums
) -> dict[str, Arrays]:
    """Reads the arrays of all maps, for `IdMaps.load`; for another number of rows, see `resizing`.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        maps: maps that the arrays are for; None without dynamic ids.
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        OtherShapeError: the checkpoint has maps of other tables.
        UserError: it can't be read.
        DamagedCheckpointError: files are missing or damaged.
    """
    noted = metadata.get(NAME, {})
    wanted = maps.tables if maps else {}
    if noted.keys() != wanted.keys():
        raise OtherShapeError(
            f"checkpoint {path} has ids of the tables {', '.join(sorted(noted)) or 'none'}, "
            f"expected {', '.join(sorted(wanted)) or 'none'}; give the same tables dynamic ids"
        )
    return {name: load_arrays(path, metadata, name, sums) for name in noted}


def map_of_table(metadata: Mapping[str, Any], table: str) -> str | None:
    """The name of the map of a table in a checkpoint; None if its ids are rows.

    Args:
        metadata: result of `metadata.read_metadata`.
        table: name of the table.
    """
    noted = metadata.get(NAME, {})
    return next((name for name, own in noted.items() if table in own["tables"]), None)


def policy_of(metadata: Mapping[str, Any], name: str) -> DynamicIds:
    """The rules of a map in a checkpoint.

    Args:
        metadata: result of `metadata.read_metadata`.
        name: name of the map, see `map_of_table`.
    """
    return DynamicIds(**metadata[NAME][name]["policy"])


def load_id_map(path: Path, metadata: Mapping[str, Any], name: str, sums: LoadedSums) -> PartedMap:
    """Reads one map, with all its parts.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        name: name of the map, see `map_of_table`.
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        UserError: it can't be read.
        DamagedCheckpointError: files are missing or damaged.
    """
    try:
        arrays = load_arrays(path, metadata, name, sums)
        return PartedMap.from_arrays(policy_of(metadata, name), arrays)
    except DamagedCheckpointError:
        raise
    except UserError as error:
        raise UserError(f"checkpoint {path}, ids of table {name}: {error}") from error


def load_arrays(path: Path, metadata: Mapping[str, Any], name: str, sums: LoadedSums) -> Arrays:
    """Reads the arrays of one map.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        name: name of the map, see `map_of_table`.
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        UserError: it can't be read.
        DamagedCheckpointError: files are missing or damaged.
    """
    specs = metadata[NAME][name]["arrays"]
    found = {key: np.zeros(spec["shape"], spec["dtype"]) for key, spec in specs.items()}
    # Such as an empty sketch, see `write_id_maps`.
    abstract = {key: array for key, array in found.items() if array.size}
    loaded = orbax().load(path / NAME, {name: abstract}, partial=True)[name]
    for key, array in loaded.items():
        found[key] = np.asarray(array)
        sums.add(f"{NAME}/{name}/{key}", found[key])
    return found

"""The maps of tables with dynamic ids in a checkpoint: plain arrays by row, beside the rows.

The metadata has, by the name of a map, its tables, its policy, and shape and dtype of its arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.dynamic_ids.id_map import IdMap
from dlrm_jax.dynamic_ids.id_maps import IdMaps
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
    noted: dict[str, dict[str, Any]] = {}
    written: dict[str, Arrays] = {}
    for name, arrays in (maps.arrays() if maps else {}).items():
        assert maps is not None
        tables = maps.tables[name]
        noted[name] = {
            "tables": [table.name for table in tables],
            "policy": dataclasses.asdict(tables[0].ids),  # pyright: ignore[reportArgumentType]
            "arrays": {
                key: {"shape": array.shape, "dtype": str(array.dtype)}
                for key, array in arrays.items()
            },
        }
        written[name] = arrays
        for key, array in arrays.items():
            sums.add(f"{NAME}/{name}/{key}", array)
    if written:
        orbax().save(path / NAME, written)
    return noted


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
    return {name: _load(path, noted, name, sums) for name in noted}


def map_of_table(metadata: Mapping[str, Any], table: str) -> str | None:
    """The name of the map of a table in a checkpoint; None if its ids are rows.

    Args:
        metadata: result of `metadata.read_metadata`.
        table: name of the table.
    """
    noted = metadata.get(NAME, {})
    return next((name for name, own in noted.items() if table in own["tables"]), None)


def load_id_map(path: Path, metadata: Mapping[str, Any], name: str, sums: LoadedSums) -> IdMap:
    """Reads one map.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        name: name of the map, see `map_of_table`.
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        UserError: it can't be read.
        DamagedCheckpointError: files are missing or damaged.
    """
    noted = metadata[NAME]
    try:
        return IdMap.from_arrays(
            DynamicIds(**noted[name]["policy"]), _load(path, noted, name, sums)
        )
    except DamagedCheckpointError:
        raise
    except UserError as error:
        raise UserError(f"checkpoint {path}, ids of table {name}: {error}") from error


def _load(path: Path, noted: Mapping[str, Any], name: str, sums: LoadedSums) -> Arrays:
    """The arrays of one map."""
    specs = noted[name]["arrays"]
    found = {key: np.zeros(spec["shape"], spec["dtype"]) for key, spec in specs.items()}
    # Earlier commits noted an empty sketch, which Orbax can't write.
    abstract = {key: array for key, array in found.items() if array.size}
    loaded = orbax().load(path / NAME, {name: abstract}, partial=True)[name]
    for key, array in loaded.items():
        found[key] = np.asarray(array)
        sums.add(f"{NAME}/{name}/{key}", found[key])
    return found

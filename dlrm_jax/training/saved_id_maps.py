"""The maps of tables with dynamic ids in a checkpoint: plain arrays by row, beside the rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.dynamic_ids.id_maps import Arrays, IdMaps
from dlrm_jax.errors import OtherShapeError
from dlrm_jax.training.checksums import LoadedSums, SavedSums
from dlrm_jax.training.serialization import orbax

_DIRECTORY = "id_maps"


def save_id_maps(path: Path, maps: Arrays, sums: SavedSums) -> dict[str, dict[str, Any]]:
    """Writes the arrays of all maps; returns shape and dtype of each by ``table/name``.

    Args:
        path: directory of the checkpoint.
        maps: arrays by table and name, see `IdMaps.arrays`; none without dynamic ids.
        sums: checksums of what is written.
    """
    index = {}
    written: dict[str, dict[str, np.ndarray]] = {}
    for table, arrays in maps.items():
        for name, array in arrays.items():
            index[f"{table}/{name}"] = {"shape": array.shape, "dtype": str(array.dtype)}
            if array.size:  # Orbax writes no others
                sums.add(f"{_DIRECTORY}/{table}/{name}", array)
                written.setdefault(table, {})[name] = array
    if written:
        orbax().save(path / _DIRECTORY, written)
    return index


def load_id_maps(
    path: Path, metadata: Mapping[str, Any], maps: IdMaps | None, sums: LoadedSums
) -> dict[str, dict[str, np.ndarray]]:
    """Reads the arrays of all maps.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        maps: maps that the arrays are for; None without dynamic ids.
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        OtherShapeError: the checkpoint has maps of other tables, or of other numbers of rows.
        UserError: it has maps where none are wanted.
        DamagedCheckpointError: files are missing or damaged.
    """
    index = metadata.get(_DIRECTORY, {})
    names = {key.rpartition("/")[0] for key in index}
    wanted = dict(maps.rows) if maps else {}
    if names != wanted.keys():
        raise OtherShapeError(
            f"checkpoint {path} has ids of the tables {', '.join(sorted(names)) or 'none'}, "
            f"expected {', '.join(sorted(wanted)) or 'none'}; give the same tables dynamic ids"
        )
    for table, rows in wanted.items():
        there = index[f"{table}/keys"]["shape"][0]
        if there != rows:
            raise OtherShapeError(
                f"checkpoint {path} has {there} rows for the ids of table {table}, expected "
                f"{rows}; give the table as many rows, defaults included"
            )
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, spec in index.items():
        table, _, name = key.rpartition("/")
        found.setdefault(table, {})[name] = np.zeros(spec["shape"], spec["dtype"])
    abstract = {
        table: {name: array for name, array in arrays.items() if array.size}
        for table, arrays in found.items()
    }
    if found:
        loaded = orbax().load(path / _DIRECTORY, abstract)
        for table, arrays in loaded.items():
            for name, array in arrays.items():
                sums.add(f"{_DIRECTORY}/{table}/{name}", np.asarray(array))
                found[table][name] = np.asarray(array)
    return found

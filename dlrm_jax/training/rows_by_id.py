"""Tables of a checkpoint by id: those with dynamic ids become tables of a vocabulary.

What only reads a trained model then needs no map: an id without a row has the values of a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import put_whole
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.saved_id_maps import NAME, load_id_map, map_of_table
from dlrm_jax.training.serialization import load_rows

STREAM = "stream"
"""The key in a checkpoint's metadata of the part of a stream that it was trained on."""


def load_table(
    path: Path,
    metadata: Mapping[str, Any],
    table: str,
    wanted: Mapping[str, jax.ShapeDtypeStruct | np.ndarray],
    sums: LoadedSums,
) -> dict[str, Array | np.ndarray]:
    """Reads the arrays of one table, with a row for each id of a vocabulary.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        table: name of the table.
        wanted: shapes, dtypes and shardings by key, see `serialization.load_rows`. Of a table with
            dynamic ids, they have the rows of ids 0, 1, ….
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        OtherShapeError: the checkpoint has no such table, or one of another shape.
    """
    name = map_of_table(metadata, table)
    if name is None:
        return load_rows(path, metadata, table, wanted, sums)
    ids = load_id_map(path, metadata, name, sums)
    count = metadata[NAME][name]["arrays"]["keys"]["shape"][0]
    specs = {
        key: np.broadcast_to(np.zeros((), x.dtype), (count, *x.shape[1:]) if x.shape else ())
        for key, x in wanted.items()
    }
    by_row = load_rows(path, metadata, table, specs, sums)
    found = {}
    for key, spec in wanted.items():
        array = np.asarray(by_row.pop(key))
        if array.ndim:
            array = array[ids.find(np.arange(spec.shape[0]))]
        sharding = getattr(spec, "sharding", None)
        found[key] = put_whole(array, sharding) if sharding is not None else array
    return found


def check_static(
    path: Path,
    metadata: Mapping[str, Any],
    does: str,
) -> None:
    """Checks that a checkpoint has no table with dynamic ids.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        does: description of what the checkpoint is to be used for, for the message.

    Raises:
        UserError: it has some.
    """
    if names := ", ".join(metadata.get(NAME, {})):
        raise UserError(
            f"{does} {path}: expected tables whose ids are rows, but ids of {names} are dynamic "
            f"there; go on with that run in its own workdir"
        )

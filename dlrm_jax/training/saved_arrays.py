"""Arrays of the tables of a checkpoint in NumPy, by name alone: no model says what is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.serialization import array_name, load_rows


def tables_in(metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the optimizer slots of each table of a checkpoint, by the table's name.

    Args:
        metadata: result of `metadata.read_metadata`.
    """
    found: dict[str, list[str]] = {}
    for name in metadata["arrays"]:
        table, _, key = name.rpartition("/")
        slots = found.setdefault(table, [])
        if key != array_name(metadata, "table"):
            slots.append(key)
    return found


def load_array(
    checkpoint: Path, metadata: Mapping[str, Any], table: str, key: str, sums: LoadedSums
) -> Shaped[np.ndarray, "..."]:
    """Reads one array of a table, in the dtype that it was saved in.

    Checkpoints without checksums note no dtypes; their arrays are read as float32.

    Args:
        checkpoint: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        table: name of the table, from `tables_in`.
        key: ``"table"``, or the name of an optimizer slot.
        sums: checksums of what is loaded; call its ``check`` when all is.

    Raises:
        UserError: it can't be read.
        DamagedCheckpointError: files are missing or damaged.
    """
    stored = array_name(metadata, key)
    shape = tuple(metadata["arrays"][f"{table}/{stored}"]["shape"])
    dtype = sums.dtype(f"tables/{table}/{stored}", jnp.dtype(np.float32))
    wanted = {key: np.broadcast_to(np.zeros((), dtype), shape)}
    return np.asarray(load_rows(checkpoint, metadata, table, wanted, sums)[key])

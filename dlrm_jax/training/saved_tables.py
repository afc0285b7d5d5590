"""The tables of a checkpoint, written a few at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dlrm_jax.errors import UserError
from dlrm_jax.training.checksums import SavedSums
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.memory import release_memory
from dlrm_jax.training.serialization import ITEM_BYTES, NOT_FINITE, orbax

_ROWS = 2**16  # of a table in the host's memory that are looked at together


class SavedTables:
    """Arrays of tables on their way to a checkpoint: `add` and `write` each, then `finish`.

    Arrays are collected until they take `ITEM_BYTES`, then written together as an item.

    Args:
        directory: directory of the items, which exists.
        sums: checksums of what is written.
    """

    def __init__(self, directory: Path, sums: SavedSums):
        self._directory, self._sums = directory, sums
        self._pending: dict[str, dict[str, Array | np.ndarray]] = {}
        self._items = self._size = 0
        self._index: dict[str, dict[str, Any]] = {}

    def add(self, table: str, key: str, array: Array | np.ndarray) -> None:
        """Takes an array; it must not change until it is written.

        Args:
            table: name of the table.
            key: ``"table"`` or the name of an optimizer slot.
            array: array by row, or a number that all rows share.
        """
        # Bytes on all devices: slots with one number per row are whole on each.
        is_host = isinstance(array, np.ndarray)
        parts = [array] if is_host else [shard.data for shard in array.addressable_shards]
        self._size += sum(part.nbytes for part in parts)
        self._sums.add(f"tables/{table}/{key}", array)
        self._pending.setdefault(table, {})[key] = array
        self._index[f"{table}/{key}"] = {"item": str(self._items), "shape": array.shape}

    def write(self) -> None:
        """Writes what has been collected if that is enough for an item, and lets go of it."""
        if self._size >= ITEM_BYTES:
            self._flush()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Writes what is left; returns the item and shape of each array by ``table/key``."""
        self._flush()
        return self._index

    def _flush(self) -> None:
        if self._pending:
            orbax().save(self._directory / str(self._items), self._pending)
            self._pending.clear()
            release_memory()
            self._items += 1
        self._size = 0


def save_tables(
    directory: Path, learner: Learner, state: TrainState, sums: SavedSums
) -> dict[str, dict[str, Any]]:
    """Writes all tables; returns the item and shape of each array by ``table/key``.

    Args:
        directory: directory of the items, which exists.
        learner: learner of the state.
        state: state to write.
        sums: checksums of what is written.

    Raises:
        UserError: the rows of a table aren't finite.
    """
    saved = SavedTables(directory, sums)
    for table, key, array in learner.collection.iter_arrays(state.embedding):
        if key == "table" and not _is_finite(array):
            raise UserError(f"the rows of table {table.name} {NOT_FINITE}")
        saved.add(table.name, key, array)
        del array  # otherwise it would live on while the next one is made
        saved.write()
    return saved.finish()


def _is_finite(array: Array | np.ndarray) -> bool:
    if isinstance(array, np.ndarray):
        parts = (array[i : i + _ROWS] for i in range(0, len(array), _ROWS))
        return all(bool(np.isfinite(part).all()) for part in parts)
    return bool(_all_finite(array))


@jax.jit  # it makes no array
def _all_finite(array: Array) -> Array:
    return jnp.isfinite(array).all()

"""The journal of a run: what has changed since its latest checkpoint, in small entries.

    DIRECTORY/00000040/          the checkpoint of step 40
    DIRECTORY/00000040.journal/  000001, 000002, …: each the rows of tables that steps have touched
                                 since the entry before, with their optimizer state; all of the
                                 dense model; changes of the maps of dynamic ids; other arrays

The state of a checkpoint with all entries applied has the bits of the state that was trained. Each
entry names the one before, so an entry that is lost or damaged ends the journal there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.embedding.reshard import slot_ndims
from dlrm_jax.errors import UserError
from dlrm_jax.processes import on_process_0
from dlrm_jax.training.dense_items import host_items
from dlrm_jax.training.journal_entry import (
    DENSE,
    HOST,
    MAP,
    PLACES,
    ROWS,
    VALUES,
    Entry,
    Name,
    write_entry,
)
from dlrm_jax.training.journal_files import entry_name, set_entries_aside
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.replay import Arrays, Replay, rows_of
from dlrm_jax.training.retention import journal_of, metadata_hash
from dlrm_jax.training.serialization import NOT_FINITE
from dlrm_jax.training.touched_rows import TouchedRows
from dlrm_jax.workspaces import sweep


class Journal:
    """Writes a journal: process 0 does, of what all have.

    Args:
        learner: learner of the run.
        touched: rows that steps have changed.
    """

    def __init__(self, learner: Learner, touched: TouchedRows):
        self._learner, self._touched = learner, touched
        self._directory: Path | None = None
        self._base = self._before = ""
        self._number = 0
        self._maps: Arrays = {}
        # Tables whose optimizers count steps, though none of their rows may be touched.
        slab_of = learner.collection.layout.slab_of
        names = learner.collection.tables
        self._counting = [x for x in names if 0 in slot_ndims(slab_of(x)).values()]

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint that entries follow."""
        return self._directory is not None

    def begin(self, replay: Replay, id_maps: IdMaps | None) -> None:
        """Goes on from a checkpoint and the entries behind it; others are set aside.

        Args:
            replay: checkpoint, and its entries as far as they were applied.
            id_maps: maps of that state; None without dynamic ids.

        Raises:
            UserError: an entry can't be moved.
        """
        self._touched.take()
        self._directory = journal_of(replay.checkpoint)
        self._number, self._before = replay.number, replay.before
        self._base = on_process_0(lambda: _clean(replay.checkpoint, replay.number))
        self._maps = id_maps.arrays() if id_maps else {}

    def write(
        self,
        state: TrainState,
        notes: Mapping[str, Any],
        id_maps: IdMaps | None,
        host_arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Writes what has changed since the last entry.

        Args:
            state: state; it must not be donated meanwhile.
            notes: metadata of the state, as JSON.
            id_maps: maps of this state's step; None without dynamic ids.
            host_arrays: arrays beside the state, by name.

        Raises:
            UserError: numbers aren't finite, or the disk can't be written to. The entries before
                are intact.
        """
        journal = self._directory
        assert journal
        rows = dict.fromkeys(self._counting, np.zeros(0, np.int32)) | self._touched.take()
        arrays: dict[Name, np.ndarray] = {(ROWS, name): x for name, x in rows.items()}
        values = self._learner.collection.read_row_state(state.embedding, rows)
        for name, own in values.items():
            _check_finite(own["table"], f"rows of table {name}", int(state.step))
            arrays |= {(VALUES, name, key): array for key, array in own.items()}
        for name, array in host_items(state).items():
            if name.startswith("params."):
                _check_finite(array, "parameters", int(state.step))
            arrays[DENSE, name] = array
        arrays |= {(HOST, name): array for name, array in host_arrays.items()}
        maps = id_maps.arrays() if id_maps else {}
        for name, own in maps.items():
            for key, array in own.items():
                places = np.flatnonzero(array != self._maps[name][key])
                arrays[MAP, name, key] = array[places]
                arrays[PLACES, name, key] = places
        number = self._number + 1
        sizes, step = rows_of(self._learner), int(state.step)
        entry = Entry(number, step, self._base, self._before, sizes, notes, arrays)
        self._before = on_process_0(lambda: _write(journal, entry))
        self._number, self._maps = number, maps


def _clean(checkpoint: Path, last: int) -> str:
    """Sets aside what is behind the last entry that counts; gives the hash of the metadata."""
    directory = journal_of(checkpoint)
    try:
        sweep(directory)
    except OSError as error:
        raise UserError(f"cannot delete what is left in {directory}: {error}") from error
    set_entries_aside(checkpoint, last)
    return metadata_hash(checkpoint) or ""


def _write(directory: Path, entry: Entry) -> str:
    try:
        return write_entry(directory / entry_name(entry.number), entry)
    except OSError as error:
        raise UserError(
            f"cannot write entry {entry.number} of the journal {directory}: {error}; earlier "
            f"ones and the checkpoints are intact"
        ) from error


def _check_finite(array: np.ndarray, what: str, step: int) -> None:
    if not np.isfinite(array).all():
        raise UserError(f"the {what} after step {step} {NOT_FINITE}")

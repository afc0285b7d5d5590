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
from dlrm_jax.training.dense_items import from_host_items, host_items
from dlrm_jax.training.journal_entry import (
    DamagedEntryError,
    Entry,
    Name,
    read_entry,
    write_entry,
)
from dlrm_jax.training.journal_files import entries_in, entry_name, set_entries_aside
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.retention import journal_of, metadata_hash
from dlrm_jax.training.serialization import NOT_FINITE
from dlrm_jax.training.touched_rows import TouchedRows
from dlrm_jax.workspaces import sweep

_ROWS, _VALUES, _DENSE, _HOST = "rows", "values", "dense", "host"
_MAP, _PLACES = "id_map", "id_map_places"

Arrays = dict[str, dict[str, np.ndarray]]
"""Arrays of each map of dynamic ids, see `IdMaps.arrays`."""


class Replay:
    """Applies the entries of a journal to the state of its checkpoint, as they come.

    Args:
        checkpoint: directory of the checkpoint.

    Attributes:
        checkpoint: the same.
        number: number of the last entry that was applied; 0 for none.
        before: its checksum, or the hash of the checkpoint's metadata.
        notes: its metadata; empty without one.
        host_arrays: its other arrays by name; empty without one.
        damage: why the journal ends where it does, though there is more of it; None if not.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self._base = self.before = metadata_hash(checkpoint) or ""
        self.number = 0
        self.notes: Mapping[str, Any] = {}
        self.host_arrays: dict[str, np.ndarray] = {}
        self.damage: str | None = None
        self._maps: Arrays = {}
        self._specs: TrainState | None = None

    def read_on(self, learner: Learner, state: TrainState, id_maps: IdMaps | None) -> TrainState:
        """Applies the entries that are there and weren't applied yet.

        Args:
            learner: learner of the state.
            state: state after the last entry that was applied; it is donated.
            id_maps: maps, which become those of the new state; None without dynamic ids.

        Raises:
            UnreadableEntryError: an entry can't be read just now; the state may be donated.
            UserError: a later version wrote an entry.
        """
        first = self.number
        while entry := self._next(rows_of(learner)):
            if id_maps and not self._maps:
                self._maps = id_maps.arrays()
            state = self._applied(learner, state, entry)
        if id_maps and self.number > first:
            id_maps.load(self._maps)
        return state

    def is_current(self) -> bool:
        """Whether the last entry that was applied is still there as it was.

        If not, another run may have gone on from an earlier one, or would: an entry behind it would
        follow none.

        Raises:
            UnreadableEntryError: it can't be read just now.
        """
        if not self.number:
            return True
        try:
            _, checksum = read_entry(journal_of(self.checkpoint) / entry_name(self.number))
        except (FileNotFoundError, DamagedEntryError):
            return False
        return checksum == self.before

    def _next(self, rows: Mapping[str, int]) -> Entry | None:
        """The next entry; None if there is none, or one that can't be applied: see `damage`."""
        directory, number = journal_of(self.checkpoint), self.number + 1
        self.damage = None
        try:
            entry, checksum = read_entry(directory / entry_name(number))
        except FileNotFoundError:
            if any(later > number for later in entries_in(directory)):
                self.damage = f"entry {number} is missing, and there are later ones"
            return None
        except DamagedEntryError as error:
            self.damage = f"entry {number} is damaged: {error}"
            return None
        if (entry.number, entry.base, entry.before) != (number, self._base, self.before):
            self.damage = f"entry {number} doesn't follow the one before"
            return None
        if entry.rows != rows:
            self.damage = f"entry {number} is of tables with other numbers of rows or parts"
            return None
        self.number, self.before = number, checksum
        return entry

    def _applied(self, learner: Learner, state: TrainState, entry: Entry) -> TrainState:
        rows: dict[str, np.ndarray] = {}
        values: Arrays = {}
        dense: dict[str, np.ndarray] = {}
        self.notes, self.host_arrays = entry.notes, {}
        for (kind, of, *key), array in entry.arrays.items():
            if kind == _ROWS:
                rows[of] = array
            elif kind == _VALUES:
                values.setdefault(of, {})[key[0]] = array
            elif kind == _DENSE:
                dense[of] = array
            elif kind == _HOST:
                self.host_arrays[of] = array
            elif kind == _MAP:
                places = entry.arrays.get((_PLACES, of, *key), ...)
                self._maps[of][key[0]][places] = array
        embedding = learner.collection.write_rows(state.embedding, rows, values)
        self._specs = self._specs or learner.state_specs()  # traces the whole dense model
        return from_host_items(self._specs, dense, embedding)


class Journal:
    """Writes a journal.

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
        self._directory = directory = journal_of(replay.checkpoint)
        self._number, self._before = replay.number, replay.before
        self._base = metadata_hash(replay.checkpoint) or ""
        self._maps = id_maps.arrays() if id_maps else {}
        try:
            sweep(directory)
        except OSError as error:
            raise UserError(f"cannot delete what is left in {directory}: {error}") from error
        set_entries_aside(replay.checkpoint, replay.number)

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
        assert self._directory
        rows = dict.fromkeys(self._counting, np.zeros(0, np.int32)) | self._touched.take()
        arrays: dict[Name, np.ndarray] = {(_ROWS, name): x for name, x in rows.items()}
        values = self._learner.collection.read_row_state(state.embedding, rows)
        for name, own in values.items():
            _check_finite(own["table"], f"rows of table {name}", int(state.step))
            arrays |= {(_VALUES, name, key): array for key, array in own.items()}
        for name, array in host_items(state).items():
            if name.startswith("params."):
                _check_finite(array, "parameters", int(state.step))
            arrays[_DENSE, name] = array
        arrays |= {(_HOST, name): array for name, array in host_arrays.items()}
        maps = id_maps.arrays() if id_maps else {}
        for name, own in maps.items():
            for key, array in own.items():
                places = np.flatnonzero(array != self._maps[name][key])
                arrays[_MAP, name, key] = array[places]
                arrays[_PLACES, name, key] = places
        number = self._number + 1
        sizes, step = rows_of(self._learner), int(state.step)
        entry = Entry(number, step, self._base, self._before, sizes, notes, arrays)
        try:
            self._before = write_entry(self._directory / entry_name(number), entry)
        except OSError as error:
            raise UserError(
                f"cannot write entry {number} of the journal {self._directory}: {error}; earlier "
                f"ones and the checkpoints are intact"
            ) from error
        self._number, self._maps = number, maps


def rows_of(learner: Learner) -> dict[str, int]:
    """The number of rows of each table, and of the parts of its map if there are several."""
    tables = learner.collection.tables.items()
    parts = {f"parts of {x}": y.ids.parts for x, y in tables if y.ids and y.ids.parts > 1}
    return {name: table.rows for name, table in tables} | parts


def _check_finite(array: np.ndarray, what: str, step: int) -> None:
    if not np.isfinite(array).all():
        raise UserError(f"the {what} after step {step} {NOT_FINITE}")

"""Reads a journal: applies its entries to the state of their checkpoint, see `journal`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.errors import UserError
from dlrm_jax.processes import gathered_texts, is_distributed, is_process_0, on_process_0
from dlrm_jax.training.dense_items import from_host_items
from dlrm_jax.training.journal_entry import (
    DENSE,
    HOST,
    MAP,
    PLACES,
    ROWS,
    VALUES,
    DamagedEntryError,
    Entry,
    read_entry,
)
from dlrm_jax.training.journal_files import entries_in, entry_name
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.retention import journal_of, metadata_hash

Arrays = dict[str, dict[str, np.ndarray]]
"""Arrays of each map of dynamic ids, see `IdMaps.arrays`."""


class Replay:
    """Applies the entries of a journal to the state of its checkpoint, as they come.

    Processes apply them together: those that process 0 finds, which all of them read.

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
            UserError: a later version wrote an entry, or a process can't read one that process 0
                has read.
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
        path = journal_of(self.checkpoint) / entry_name(self.number + 1)
        entry: Entry | None = None

        def find() -> list[str | None]:
            nonlocal entry
            self.damage = None
            entry, checksum = self._find(path, rows)
            return [checksum, self.damage]

        checksum, self.damage = on_process_0(find)
        if checksum is None:
            return None
        if is_distributed():
            entry, failure = (entry, "") if is_process_0() else _same_entry(path, checksum)
            if failures := [x for x in gathered_texts(failure) if x]:
                raise UserError(failures[0])
        self.number, self.before = self.number + 1, checksum
        return entry

    def _find(self, path: Path, rows: Mapping[str, int]) -> tuple[Entry, str] | tuple[None, None]:
        """The next entry and its checksum, if it can be applied.

        Raises:
            UserError: it is of tables with other numbers of rows. It isn't damaged, and nothing is
                moved: a run with those of before can go on from it.
        """
        directory, number = path.parent, self.number + 1
        try:
            entry, checksum = read_entry(path)
        except FileNotFoundError:
            if any(later > number for later in entries_in(directory)):
                self.damage = f"entry {number} is missing, and there are later ones"
            return None, None
        except DamagedEntryError as error:
            self.damage = f"entry {number} is damaged: {error}"
            return None, None
        if (entry.number, entry.base, entry.before) != (number, self._base, self.before):
            self.damage = f"entry {number} doesn't follow the one before"
        elif entry.rows != rows:
            raise UserError(
                f"the journal {directory} is of tables with other numbers of rows or parts: "
                f"{_differing(entry.rows, rows)}; run with those of before until a checkpoint is "
                f"saved, as SIGTERM has one saved, then change them. Or move the journal away, and "
                f"lose what is in it"
            )
        else:
            return entry, checksum
        return None, None

    def _applied(self, learner: Learner, state: TrainState, entry: Entry) -> TrainState:
        rows: dict[str, np.ndarray] = {}
        values: Arrays = {}
        dense: dict[str, np.ndarray] = {}
        self.notes, self.host_arrays = entry.notes, {}
        for (kind, of, *key), array in entry.arrays.items():
            if kind == ROWS:
                rows[of] = array
            elif kind == VALUES:
                values.setdefault(of, {})[key[0]] = array
            elif kind == DENSE:
                dense[of] = array
            elif kind == HOST:
                self.host_arrays[of] = array
            elif kind == MAP:
                places = entry.arrays.get((PLACES, of, *key), ...)
                self._maps[of][key[0]][places] = array
        embedding = learner.collection.write_rows(state.embedding, rows, values)
        self._specs = self._specs or learner.state_specs()  # traces the whole dense model
        return from_host_items(self._specs, dense, embedding)


def _same_entry(path: Path, checksum: str) -> tuple[Entry | None, str]:
    """An entry that process 0 has read, and why this process doesn't have it; empty if it does."""
    advice = "see that all processes see the same disk, or resume in one process"
    try:
        entry, own = read_entry(path)
    except (OSError, DamagedEntryError, UserError) as error:
        return None, f"process 0 has read {path}, another process can't: {error}; {advice}"
    if own != checksum:
        return (
            None,
            f"expected {path} as process 0 has read it, another process has other bytes; {advice}",
        )
    return entry, ""


def _differing(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Numbers of rows and parts that aren't those of before."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(
        f"{name} {before.get(name, 1):,} before and {now.get(name, 1):,} now" for name in names
    )


def rows_of(learner: Learner) -> dict[str, int]:
    """The number of rows of each table, and of the parts of its map if there are several."""
    tables = learner.collection.tables.items()
    parts = {f"parts of {x}": y.ids.parts for x, y in tables if y.ids and y.ids.parts > 1}
    return {name: table.rows for name, table in tables} | parts

"""An artifact whose rows and layers deltas replace while others predict with it.

There are two copies of the tables, which share all pages of the files that no delta has written
into, and of the index of keys, if rows have any. One of them predicts while the other gets the
next delta; then they change places. So no prediction waits for a delta, or sees a part of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int32, UInt8

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.delta import Delta
from dlrm_jax.artifact.delta_chain import delta_path, deltas_of
from dlrm_jax.artifact.id_rows import IdRows
from dlrm_jax.artifact.native_dense import native_dense
from dlrm_jax.artifact.stored_tables import StoredTable
from dlrm_jax.artifact.tables import map_lookups
from dlrm_jax.dynamic_ids.keys import KeyChanges

_ROWS = 1 << 15  # between two of these, other threads of Python have their turn


class _State:
    """A state of the artifact, and how many threads predict with it."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.readers = 0

    @property
    def tables(self) -> dict[str, StoredTable]:
        """The tables that a lookup reads."""
        return {x.table.name: x.table for x in self.artifact.lookups.lookups}


class UpdatedArtifact:
    """An artifact and the state that deltas have led to.

    Args:
        artifact: artifact that has just been loaded.
    """

    def __init__(self, artifact: Artifact):
        # Without a delta, predictions read the shared maps, which may have huge pages.
        self._served = _State(artifact)
        self._copies = _State(_privately(artifact)), _State(_privately(artifact))
        self._applied = 0
        self._missed: dict[str, list[Int32[np.ndarray, " n"]]] = {}  # rows that the next copy lacks
        self._missed_keys: list[Mapping[str, KeyChanges]] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Artifact]:
        """Context of the newest state, which stays as it is until the context ends."""
        with self._changed:
            own = self._served
            own.readers += 1
        try:
            yield own.artifact
        finally:
            with self._changed:
                own.readers -= 1
                self._changed.notify_all()

    def apply(self, delta: Delta) -> None:
        """Makes the state that a delta leads to, and predicts with it from then on.

        One thread at a time may call it. It waits for predictions with the state before the last.
        If it raises, the state stays.

        Raises:
            DamagedDeltaError: an id would have two rows.
        """
        before, after = self._served, self._copies[self._applied % 2]
        if before.artifact.id_rows:
            path = delta_path(deltas_of(before.artifact.directory), delta.note.number)
            before.artifact.id_rows.check(path, delta.keys)
        with self._changed:
            self._changed.wait_for(lambda: not after.readers)
        newer, tables = before.tables, after.tables
        for name, missed in self._missed.items():
            for numbers in missed:
                _write(tables[name].rows, numbers, newer[name].rows, numbers)
        for name, (numbers, rows) in delta.rows.items():
            if name in tables:
                # Noted first: what is half written when this fails is read again from `before`.
                self._missed.setdefault(name, []).append(numbers)
                _write(tables[name].rows, numbers, rows, np.arange(len(rows)))
        if after.artifact.id_rows:
            self._missed_keys.append(delta.keys)
            for changes in self._missed_keys:  # those of this copy may be there already
                after.artifact.id_rows.apply(changes)
        after.artifact = _with_layers(after.artifact, delta.note.step, delta.layers)
        with self._changed:
            self._served = after
        self._applied += 1
        self._missed = {name: [x] for name, (x, _) in delta.rows.items() if name in tables}
        self._missed_keys = [delta.keys]


def _privately(artifact: Artifact) -> Artifact:
    """The artifact with tables that may be written into, and an index of its own."""
    directory, manifest = artifact.directory, artifact.manifest
    lookups = map_lookups(directory, manifest.tables, manifest.lookups, private=True)
    id_rows = IdRows.read(directory, manifest)
    return dataclasses.replace(artifact, lookups=lookups, id_rows=id_rows)


def _write(
    to: UInt8[np.ndarray, "R b"],
    numbers: Int32[np.ndarray, " n"],
    rows: UInt8[np.ndarray, "m b"],
    places: Int[np.ndarray, " n"],
) -> None:
    """Copies rows, some at a time."""
    for first in range(0, len(numbers), _ROWS):
        own = slice(first, first + _ROWS)
        to[numbers[own]] = rows[places[own]]


def _with_layers(artifact: Artifact, step: int, arrays: Mapping[str, np.ndarray]) -> Artifact:
    """The artifact with other layers."""
    layers: dict[str, Any] = {name: jnp.asarray(array) for name, array in arrays.items()}
    manifest = dataclasses.replace(artifact.manifest, step=step)
    native = native_dense(manifest, layers, artifact.lookups)
    return dataclasses.replace(artifact, manifest=manifest, layers=layers, native=native)

"""The rows of ids: of values of a stream, which are hashed or have keys, and of vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, UInt64

from dlrm_jax.artifact.delta_keys import KEYS
from dlrm_jax.artifact.id_notes import IdsNote
from dlrm_jax.artifact.key_files import read_keys
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.notes import FeatureNote
from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.preprocessing.hashed_rows import hashed, salt_of
from dlrm_jax.data.preprocessing.raw_ids import ABSENT_ID
from dlrm_jax.dynamic_ids.key_index import KeyIndex
from dlrm_jax.dynamic_ids.keys import KeyChanges
from dlrm_jax.errors import DamagedDeltaError, UserError

_ABSENT_ID = np.uint64(ABSENT_ID).view(np.int64)


class IdRows:
    """Gives ids the rows that a model has for them. Several threads may call it.

    Args:
        features: features, in the order of the columns of ids.
        note: description.
        indexes: ids that have rows, by the name of their map.

    Attributes:
        note: description.
        indexes: ids that have rows, by the name of their map.
    """

    def __init__(
        self, features: Sequence[FeatureNote], note: IdsNote, indexes: Mapping[str, KeyIndex]
    ):
        self.note, self.indexes = note, indexes
        ends = np.cumsum([x.max_ids for x in features]).tolist()
        columns = {
            x.name: np.arange(end - x.max_ids, end) for x, end in zip(features, ends, strict=True)
        }
        self._hashed = _joined([columns[x.feature] for x in note.hashed])
        widths = [len(columns[x.feature]) for x in note.hashed]
        salts = np.array([salt_of(x.salt) for x in note.hashed], np.uint64)
        self._salts = np.repeat(salts, widths)
        self._rows = np.repeat(np.array([x.rows for x in note.hashed], np.uint64), widths)
        self._found: list[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]] = [
            (_joined([columns[name] for name in x.features]), indexes[x.name].find)
            for x in note.maps
        ]

    @classmethod
    def read(cls, directory: Path, manifest: Manifest) -> IdRows | None:
        """That of an artifact; None if ids are rows.

        Raises:
            DamagedArtifactError: a file of keys isn't as it was written.
        """
        note = manifest.id_rows
        if note is None:
            return None
        indexes = {x.name: read_keys(directory, x, manifest.files) for x in note.maps}
        return cls(manifest.features, note, indexes)

    def __call__(self, ids: Int[np.ndarray, "B C"]) -> Int32[np.ndarray, "B C"]:
        """The rows of ids; negative is absent.

        Args:
            ids: ids of all features side by side: of a stream int64 with `ABSENT_ID`, or else of a
                vocabulary, of which negative ones are absent.

        Raises:
            UserError: ids of a stream aren't int64.
        """
        if self.note.schema is None:
            found, present = ids.astype(np.int32), ids >= 0
        else:
            if ids.dtype != np.int64:
                raise UserError(
                    f"ids: expected those of values of a stream, int64, got {ids.dtype}; "
                    f"dlrm_jax.data.preprocessing.raw_ids gives them"
                )
            found, present = np.full(ids.shape, ABSENT, np.int32), ids != _ABSENT_ID
        keys: UInt64[np.ndarray, "B C"] = ids.astype(np.int64, copy=False).view(np.uint64)
        if len(self._hashed):
            rows = hashed(keys[:, self._hashed], self._salts, self._rows)
            found[:, self._hashed] = np.where(present[:, self._hashed], rows, np.int32(ABSENT))
        for columns, find in self._found:
            own, there = keys[:, columns], present[:, columns]
            rows = np.full(own.shape, ABSENT, np.int32)
            rows[there] = find(own[there])
            found[:, columns] = rows
        return found

    def check(self, delta: Path, changes: Mapping[str, KeyChanges]) -> None:
        """Checks that no id has two rows after the changes of a delta.

        Args:
            delta: directory of the delta.
            changes: changes by map, in which each id has one row.

        Raises:
            DamagedDeltaError: one has.
        """
        for name, own in changes.items():
            if (twice := self.indexes[name].in_other_rows(own)).size:
                text = f"expected one row of each id, id {twice[0]} keeps another, too"
                raise DamagedDeltaError(str(delta), KEYS, f"map {name!r}: {text}")

    def apply(self, changes: Mapping[str, KeyChanges]) -> None:
        """Gives rows other ids.

        Args:
            changes: changes by map.
        """
        for name, own in changes.items():
            self.indexes[name].apply(own)


def _joined(columns: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *columns])

"""The file of a delta that says which rows have other ids now, and which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from dlrm_jax.artifact.id_notes import KeysNote
from dlrm_jax.dynamic_ids.keys import KeyChanges

KEYS = "keys.records"

RECORD = np.dtype([("row", "<i4"), ("live", "<i4"), ("key", "<u8")])
"""A row, whether it belongs to an id now, and the id; 0 where it doesn't."""


class UnfitError(Exception):
    """Files of a delta don't fit its description, or the artifact."""


def records_of(changes: KeyChanges) -> Shaped[np.ndarray, " n"]:
    """Changes of a map as the file has them."""
    found = np.empty(len(changes.rows), RECORD)
    found["row"], found["live"], found["key"] = changes.rows, changes.live, changes.keys
    return found


def changes_of(
    counts: Sequence[tuple[str, int]], maps: Sequence[KeysNote], content: bytes
) -> dict[str, KeyChanges]:
    """The changes of a file, checked.

    Args:
        counts: name of each map in the file and number of its records.
        maps: maps of the artifact.
        content: bytes of the file.

    Raises:
        UnfitError: they don't fit each other.
    """
    noted, found = {x.name: x for x in maps}, dict[str, KeyChanges]()
    if len(content) != RECORD.itemsize * sum(count for _, count in counts):
        raise UnfitError("there are other keys than those of its maps")
    records = np.frombuffer(content, RECORD)
    for name, count in counts:
        if name not in noted or name in found:
            raise UnfitError(f"map {name!r} is no map of the artifact, or there twice")
        own, records = records[:count], records[count:]
        rows, live, note = own["row"], own["live"], noted[name]
        if not np.all(rows[1:] > rows[:-1]) or rows[0] < note.defaults or rows[-1] >= note.rows:
            raise UnfitError(
                f"map {name!r}: expected ascending numbers of rows from {note.defaults:,} to "
                f"{note.rows - 1:,}"
            )
        if not np.isin(live, (0, 1)).all() or own["key"][live == 0].any():
            raise UnfitError(f"map {name!r}: expected no keys where live is 0")
        given = np.sort(own["key"][live == 1])
        if (twice := given[1:][given[1:] == given[:-1]]).size:
            raise UnfitError(
                f"map {name!r}: expected one row of each id, id {twice[0]} has several"
            )
        found[name] = KeyChanges(
            rows.astype(np.int32), own["key"].astype(np.uint64), live.astype(bool)
        )
    return found

"""Records of keys: what is read is what was written, or doesn't fit."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.artifact.delta_keys import UnfitError, changes_of, records_of
from dlrm_jax.artifact.id_notes import KeysNote
from dlrm_jax.dynamic_ids.keys import KeyChanges

NOTE = KeysNote("a", ("a",), ("x",), 9, 2, 0, "keys/a.keys.npy", "keys/a.live.npy")
CHANGES = KeyChanges(
    np.array([2, 5, 8], np.int32), np.array([2**64 - 1, 0, 0], np.uint64), np.array([1, 0, 1], bool)
)


def test_what_is_read_is_what_was_written():
    content = records_of(CHANGES).tobytes()
    assert len(content) == 48
    (found,) = changes_of([("a", 3)], [NOTE], content).values()
    for own, expected in zip(found, CHANGES, strict=True):
        np.testing.assert_array_equal(own, expected)
        assert own.dtype == expected.dtype


@pytest.mark.parametrize(
    ("counts", "records", "message"),
    [
        ([("a", 2)], [(2, 1, 5)], "there are other keys"),
        ([("b", 1)], [(2, 1, 5)], "map 'b' is no map"),
        ([("a", 1), ("a", 1)], [(2, 1, 5), (3, 1, 6)], "or there twice"),
        ([("a", 2)], [(3, 1, 5), (3, 1, 6)], "expected ascending numbers of rows from 2 to 8"),
        ([("a", 1)], [(1, 1, 5)], "expected ascending numbers of rows"),
        ([("a", 1)], [(9, 1, 5)], "expected ascending numbers of rows"),
        ([("a", 1)], [(4, 0, 5)], "expected no keys where live is 0"),
        ([("a", 3)], [(3, 1, 5), (4, 0, 0), (6, 1, 5)], "one row of each id, id 5 has several"),
        ([("a", 1)], [(4, 2, 5)], "expected no keys where live is 0"),
    ],
)
def test_what_does_not_fit(
    counts: list[tuple[str, int]], records: list[tuple[int, int, int]], message: str
):
    rows, live, keys = zip(*records, strict=True)
    changes = KeyChanges(np.array(rows, np.int32), np.array(keys, np.uint64), np.array(live, bool))
    content = records_of(changes)
    content["live"] = live
    with pytest.raises(UnfitError, match=message):
        changes_of(counts, [NOTE], content.tobytes())

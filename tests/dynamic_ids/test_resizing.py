"""Maps for tables that get more rows or fewer: ids keep rows, or those lose them who would."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dlrm_jax.dynamic_ids.id_map import IdMap
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.parted_map import PartedMap
from dlrm_jax.dynamic_ids.policy import EVICTIONS, DynamicIds
from dlrm_jax.dynamic_ids.resizing import resized, rows_needed, without
from dlrm_jax.embedding import Adagrad, EmbeddingCollection, Feature, Lookup, Table
from dlrm_jax.errors import UserError

ROWS = 60


def drawn(policy: DynamicIds, steps: int = 40, ids: int = 90) -> IdMap:
    """A map that has seen random batches, in which ids have lost rows."""
    made, rng = IdMap(ROWS, policy, seed=3), np.random.default_rng(0)
    for now in range(steps):
        made.translate(rng.zipf(1.3, 12) % ids, now)
    return made


def by_id(arrays: dict[str, np.ndarray]) -> dict[int, tuple[int, int]]:
    """Count and time of each id that has a row."""
    live = np.flatnonzero(arrays["counts"])
    columns = (arrays[name][live].tolist() for name in ("keys", "counts", "last_seen"))
    return {key: (count, seen) for key, count, seen in zip(*columns, strict=True)}


@pytest.mark.parametrize("policy", [DynamicIds(), DynamicIds(defaults=3, admit_count=2)])
def test_with_more_rows_all_ids_keep_theirs(policy: DynamicIds):
    before = drawn(policy)
    change = resized(policy, before.arrays(), 100)
    after = IdMap.from_arrays(policy, change.arrays)
    assert change.lost == 0
    np.testing.assert_array_equal(change.source, np.arange(ROWS))
    ids = np.arange(200)
    np.testing.assert_array_equal(after.find(ids), before.find(ids))
    assert after.capacity == 100 - policy.defaults
    assert by_id(change.arrays) == by_id(before.arrays())


@pytest.mark.parametrize("evict", EVICTIONS)
@pytest.mark.parametrize("rows", [2, 7, 30, 59])
def test_with_fewer_rows_those_lose_theirs_who_would_be_evicted(evict: str, rows: int):
    policy = DynamicIds(evict=evict)
    before = drawn(policy)
    arrays = before.arrays()
    change = resized(policy, arrays, rows)

    def score(row: int) -> tuple[float, int, int]:
        count, seen = int(arrays["counts"][row]), int(arrays["last_seen"][row])
        first = {"lru": 0, "lfu": count, "distance_lfu": count / (before.clock - seen + 1)}[evict]
        return first, seen, row

    live = sorted(np.flatnonzero(arrays["counts"]).tolist(), key=score)
    kept = live[max(0, len(live) - (rows - 1)) :]
    assert change.lost == len(live) - len(kept) > 0 or rows == 59
    expected = {int(arrays["keys"][x]): int(x) for x in kept}
    after = IdMap.from_arrays(policy, change.arrays)
    found = after.find(np.array([*expected]))
    np.testing.assert_array_equal(change.source[found], [*expected.values()])
    assert by_id(change.arrays) == {
        key: (int(arrays["counts"][x]), int(arrays["last_seen"][x])) for key, x in expected.items()
    }
    # An id moves only if its row isn't there any more.
    stays = np.array([*expected.values()]) < rows
    np.testing.assert_array_equal(found[stays], np.array([*expected.values()])[stays])
    assert not np.isin(0, found)


def test_there_and_back_it_is_the_map_that_it_was():
    policy = DynamicIds(admit_count=3)
    arrays = drawn(policy).arrays()
    back = resized(policy, resized(policy, arrays, 200).arrays, ROWS)
    for name, array in arrays.items():
        if name != "sketch":
            np.testing.assert_array_equal(back.arrays[name], array)


@pytest.mark.parametrize("rows", [17, 33, 59, 61, 64, 120, 241, 1000])
def test_no_count_of_the_sketch_is_lower_than_before(rows: int):
    policy = DynamicIds(admit_count=200)
    before = IdMap(ROWS, policy, seed=1)
    for now in range(30):
        before.translate(np.arange(7, 40) * 10**9, now)
    whole = resized(policy, before.arrays(), rows).arrays
    counts = {}
    for state in (before.arrays(), whole):
        for key in (np.arange(7, 40) * 10**9).tolist():
            own = IdMap.from_arrays(policy, state)
            undo = own.translate(np.array([key]), 30).undo
            counts.setdefault(key, []).append(int(undo.cells_before.min()))
    assert all(after >= first >= 30 for first, after in counts.values())
    if rows in (64, 120, 241):  # 4, 8 and 16 blocks: each is a copy of one
        assert all(after == first for first, after in counts.values())


def test_without_some_ids_their_rows_are_free():
    policy = DynamicIds()
    before = drawn(policy)
    arrays = before.arrays()
    gone = np.flatnonzero(arrays["counts"] == 1)
    assert len(gone) > 3
    after = IdMap.from_arrays(policy, without(arrays, gone))
    assert after.live == before.live - len(gone)
    assert (after.find(arrays["keys"][gone]) == 0).all()
    kept = np.flatnonzero(arrays["counts"] > 1)
    np.testing.assert_array_equal(after.find(arrays["keys"][kept]), kept)
    assert before.arrays()["counts"].sum() == arrays["counts"].sum()


def test_too_few_rows_are_refused():
    policy = DynamicIds(defaults=4)
    with pytest.raises(UserError, match=r"rows of a table with dynamic ids: .* from 5 to"):
        resized(policy, drawn(policy).arrays(), 4)


def drawn_in_parts(policy: DynamicIds, rows: int, ids: int = 300) -> dict[str, np.ndarray]:
    """The arrays of a map in parts that has seen random batches."""
    table = Table("ids", rows, 4, ids=policy)
    lookups = [Lookup("id", "id", "ids")]
    tables = EmbeddingCollection([table], [Feature("id")], lookups, "1x1", Adagrad(0.1))
    maps, rng = IdMaps(tables, 3), np.random.default_rng(0)
    for now in range(40):
        maps.translate(rng.zipf(1.1, (12, 1)) % ids, now)
    return maps.arrays()["ids"]


@pytest.mark.parametrize(
    ("parts", "then", "rows"), [(4, 4, 90), (4, 4, 35), (4, 1, 60), (1, 3, 60), (4, 7, 40)]
)
def test_with_other_rows_or_parts_ids_are_where_they_are_looked_up(parts, then, rows):
    policy = DynamicIds(defaults=2, admit_count=2, parts=parts)
    arrays = drawn_in_parts(policy, 60)
    before = PartedMap.from_arrays(policy, arrays)
    other = dataclasses.replace(policy, parts=then)
    change = resized(other, arrays, rows, parts)
    after = PartedMap.from_arrays(other, change.arrays)  # which checks the part of each id
    assert (before.live > 30, after.live) == (True, before.live - change.lost)
    kept, seen = by_id(change.arrays), by_id(arrays)
    assert kept.items() <= seen.items()
    ids = np.array([*kept], np.uint64)
    np.testing.assert_array_equal(change.source[after.find(ids)], before.find(ids))
    np.testing.assert_array_equal(change.source[:2], [0, 1])
    assert len(change.source) in (rows, 60)
    clocks = {x: change.arrays["numbers"][4 * x] for x in range(then)}
    assert {*clocks.values()} == {39}
    # Of each part, those stay who were seen last.
    gone = np.array([x for x in seen if x not in kept], np.uint64)
    for part in range(then):
        times = [[seen[int(x)][1] for x in of[after.rows.of(of) == part]] for of in (gone, ids)]
        assert not times[0] or max(times[0]) <= min(times[1])
    back = resized(policy, change.arrays, 60, then)
    if not change.lost:
        assert by_id(back.arrays) == by_id(arrays)


def test_ids_without_a_row_are_counted_on_in_other_parts():
    policy = DynamicIds(admit_count=200)
    before, ids = IdMap(ROWS, policy, seed=1), np.arange(7, 40) * 10**9
    for now in range(30):
        before.translate(ids, now)
    other = dataclasses.replace(policy, parts=3)
    change = resized(other, before.arrays(), ROWS, 1)
    after = PartedMap.from_arrays(other, change.arrays)
    parts = after.rows.of(ids.astype(np.uint64))
    for key, part in zip(ids, parts, strict=True):
        undo = after.parts[int(part)].translate(np.array([key]), 30).undo
        assert undo.cells_before.min() >= 30
    again = resized(policy, change.arrays, ROWS, 3)
    assert again.arrays["numbers"].tolist() == [29, 0, 33 * 30 // 3 * 3, 1]


def test_so_many_rows_are_needed():
    policy = DynamicIds(defaults=2, parts=4)
    arrays = drawn_in_parts(policy, 200)
    ids = np.count_nonzero(arrays["counts"])
    rows = rows_needed(policy, arrays)
    assert ids + 2 < rows < ids + 40
    assert resized(policy, arrays, rows).lost == 0
    assert resized(policy, arrays, rows - 4).lost > 0

"""Maps in parts, in one process and in several: each part is a map, and the rows are the same."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from id_map_checks import POLICIES, Model, mixed
from threads_as_processes import exchanges, together

from dlrm_jax.dynamic_ids.id_columns import ABSENT
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.parted_map import PartedMap
from dlrm_jax.dynamic_ids.parts import RowParts
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.embedding import Adagrad, EmbeddingCollection, Feature, Lookup, Table
from dlrm_jax.errors import UserError


def collection(rows: int, ids: DynamicIds, others: int = 40) -> EmbeddingCollection:
    """A table in parts that two features read, one in a single part, and one of rows."""
    tables = [
        Table("items", rows, 4, ids=ids),
        Table("users", others, 4, ids=DynamicIds(evict_share=0.01)),
        Table("days", 7, 4),
    ]
    lookups = [
        Lookup("item", "item", "items"),
        Lookup("past", "past", "items"),
        Lookup("user", "user", "users"),
        Lookup("day", "day", "days"),
    ]
    features = [Feature("item"), Feature("day"), Feature("past", 2), Feature("user")]
    return EmbeddingCollection(tables, features, lookups, "1x1", Adagrad(0.1))


def part(key: int, seed: int, parts: int) -> int:
    return (mixed(key ^ mixed(seed + 5 * 0x9E3779B97F4A7C15)) >> 32) * parts >> 32


class PartedModel:
    """A model of each part, whose rows lie behind the defaults and the parts before."""

    def __init__(self, rows: int, policy: DynamicIds, seed: int):
        self.defaults, self.seed = policy.defaults, seed
        dealt = np.array_split(np.arange(policy.defaults, rows), policy.parts)
        self.rows = [[*range(policy.defaults), *x.tolist()] for x in dealt]
        self.models = [Model(len(x), policy, seed) for x in self.rows]

    def translate(self, ids: list[int], now: int) -> tuple[list[int], list[int]]:
        fresh = []
        parts = [part(x, self.seed, len(self.models)) for x in ids]
        for number, model in enumerate(self.models):
            own = [x for x, p in zip(ids, parts, strict=True) if p == number]
            fresh += [self.rows[number][x] for x in model.translate(own, now)[1]]
        return self.find(ids), fresh

    def find(self, ids: list[int]) -> list[int]:
        parts = [part(x, self.seed, len(self.models)) for x in ids]
        return [self.rows[p][self.models[p].find(x)] for x, p in zip(ids, parts, strict=True)]


@settings(max_examples=15)
@given(POLICIES, st.integers(1, 5), st.integers(0, 40), st.integers(0, 2**32))
def test_each_part_is_a_map_of_its_own(policy, parts, rows, seed):
    policy = DynamicIds(**{**vars(policy), "parts": parts})
    rows += policy.defaults + parts
    table = Table("ids", rows, 4, ids=policy)
    tables = EmbeddingCollection(
        [table], [Feature("id")], [Lookup("id", "id", "ids")], "1x1", Adagrad(0.1)
    )
    maps, model, rng = (
        IdMaps(tables, seed),
        PartedModel(rows, policy, seed),
        np.random.default_rng(seed),
    )
    for now in range(12):
        batch = rng.zipf(1.3, rng.integers(0, 30)).astype(np.uint64)
        batch = batch * np.uint64(0xBF58476D1CE4E5B9)
        before = maps.arrays()
        try:
            found = maps.translate(batch[:, None], now, np.ones((len(batch), 1), bool))
        except UserError as error:
            text = (
                rf"table ids, part \d of {parts}: .* or fewer parts" if parts > 1 else "table ids:"
            )
            assert re.match(text, str(error))  # noqa: PT017
            same(maps.arrays(), before)
            with pytest.raises(MemoryError):
                model.translate(batch.tolist(), now)
            return
        assert (found.ids[:, 0].tolist(), found.fresh["ids"].tolist()) == model.translate(
            batch.tolist(), now
        )
        assert maps.maps["ids"].find(batch).tolist() == model.find(batch.tolist())
        same(maps.arrays([found.undo]), before)
    read = IdMaps(tables)
    read.load(maps.arrays())
    same(read.arrays(), maps.arrays())
    keys = PartedMap.from_arrays(policy, maps.arrays()["ids"]).whole_keys()
    for own, other in zip(keys, maps.keys()["ids"], strict=True):
        np.testing.assert_array_equal(own, other)


def same(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for name, arrays in left.items():
        assert arrays.keys() == right[name].keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, right[name][key], err_msg=f"{name} {key}")


def batches(steps: int, samples: int = 12) -> list[np.ndarray]:
    rng, found = np.random.default_rng(3), []
    for step in range(steps):
        ids = 3 * step + rng.integers(0, 20, (samples, 5))
        ids[rng.random(ids.shape) < 0.2] = ABSENT
        ids[:, 1] = rng.integers(0, 7, samples)
        found.append(ids)
    return found


IDS = DynamicIds(evict_share=0.05, admit_count=2, defaults=2, max_age=9, parts=5)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_several_processes_give_the_rows_of_one(count):
    """Each has some parts, its own samples, and all fresh rows; 12 are more than parts."""
    tables, steps = collection(120, IDS), batches(16)
    one = IdMaps(tables, 7)
    wanted = [one.translate(ids, step) for step, ids in enumerate(steps)]
    before = one.arrays([x.undo for x in wanted[-3:]])
    connections = exchanges(count)

    def process(index: int) -> None:
        maps, undos = IdMaps(tables, 7, connections[index]), []
        for step, (ids, expected) in enumerate(zip(steps, wanted, strict=True)):
            found = maps.translate(np.split(ids, count)[index], step)
            np.testing.assert_array_equal(found.ids, np.split(expected.ids, count)[index])
            assert found.fresh.keys() == expected.fresh.keys()
            for name, rows in expected.fresh.items():
                np.testing.assert_array_equal(found.fresh[name], rows)
            undos.append(found.undo)
        same(maps.arrays(), one.arrays())
        earlier = maps.copy(undos[-3:])
        same(earlier.arrays(), before)
        earlier.load(one.arrays())
        same(earlier.arrays(), one.arrays())
        for name, keys in maps.keys().items():
            for own, other in zip(keys, one.keys()[name], strict=True):
                np.testing.assert_array_equal(own, other)
        # Any samples in any process, as for an evaluation.
        ids = steps[index % len(steps)][: 2 + index]
        np.testing.assert_array_equal(maps.find(ids), one.find(ids))
        assert sum(len(x.parts) for x in maps.maps.values()) == len(range(index, 6, count))

    together(count, process)


def test_an_error_in_one_process_is_that_of_all_and_changes_nothing():
    tables, steps = collection(120, IDS, others=6), batches(4)
    many, connections = batches(1)[0].copy(), exchanges(3)
    many[:, 4] = np.arange(len(many))
    one = IdMaps(tables, 7)
    with pytest.raises(UserError) as expected:
        one.translate(many, 5)

    def process(index: int) -> None:
        maps = IdMaps(tables, 7, connections[index])
        for step, ids in enumerate(steps):
            ids[:, 4] = 3
            maps.translate(np.split(ids, 3)[index], step)
        before = maps.arrays()
        with pytest.raises(UserError, match="needs rows for 12 different ones") as found:
            maps.translate(np.split(many, 3)[index], 5)
        assert str(found.value) == str(expected.value)
        same(maps.arrays(), before)
        wrong = np.split(many, 3)[index][:, : 4 if index == 1 else 5]
        with pytest.raises(UserError, match=r"ids: expected \[B, 5\].*got \[4, 4\]"):
            maps.translate(wrong, 5)
        with pytest.raises(UserError, match=r"ids: expected \[B, 5\].*got \[4, 4\]"):
            maps.find(wrong)
        with pytest.raises(UserError, match="can't run backwards"):
            maps.translate(np.split(steps[0], 3)[index], 1)
        with pytest.raises(UserError, match="one time in all processes, got 5, 5, 6"):
            maps.translate(np.split(steps[0], 3)[index], 5 + index // 2)
        same(maps.arrays(), before)
        maps.translate(np.split(steps[0], 3)[index], 5)

    together(3, process)


def test_parts_that_contradict_their_table_are_refused():
    policy = DynamicIds(parts=3, admit_count=2)
    made = PartedMap.new(RowParts(20, policy, 1), "ads")
    arrays = made.rows.joined([made.arrays({})[x] for x in range(3)])
    keys = np.arange(100, dtype=np.uint64)
    key = keys[made.rows.of(keys) == 2][0]
    arrays["keys"][1], arrays["counts"][1] = key, 1
    with pytest.raises(UserError, match="part 0 has ids of another part"):
        PartedMap.from_arrays(policy, arrays)
    for name in ("keys", "numbers", "counts", "sketch", "last_seen"):
        without = {key: x for key, x in arrays.items() if key != name}
        with pytest.raises(UserError, match=f"there is no array {name}"):
            PartedMap.from_arrays(policy, without)
    for name in ("numbers", "counts", "sketch"):
        with pytest.raises(UserError, match=f"{name}: expected shape"):
            PartedMap.from_arrays(policy, {**arrays, name: arrays[name][:-1]})


def test_too_few_rows_for_the_parts():
    with pytest.raises(UserError, match="from 5 to"):
        RowParts(4, DynamicIds(parts=4), 0)
    with pytest.raises(UserError, match="parts: expected an integer from 1 to 4096, got 0"):
        DynamicIds(parts=0)

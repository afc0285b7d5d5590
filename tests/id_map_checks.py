"""Checks of maps of dynamic ids, with native kernels and without: against a model, and hostile."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from dlrm_jax.dynamic_ids.id_map import IdMap, translate_all
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError

POLICIES = st.builds(
    DynamicIds,
    admit_count=st.sampled_from([1, 1, 2, 3, 255]),
    admit_probability=st.sampled_from([1.0, 0.5, 1]),
    evict=st.sampled_from(["lru", "lfu", "distance_lfu"]),
    evict_share=st.sampled_from([1e-9, 0.1, 0.5, 1]),
    max_age=st.sampled_from([None, None, 1, 9, 40]),
    defaults=st.sampled_from([1, 2, 7]),
)
BATCHES, IDS = 40, 50
"""Batches of an example, and most ids of a batch: about a thousand ids an example."""


class Model:
    """The rules as they are documented, for small tables: written without the package's code."""

    def __init__(self, rows: int, policy: DynamicIds, seed: int):
        self.rows, self.policy, self.seed = rows, policy, seed
        self.of: dict[int, list[int]] = {}  # row, count and last sight of each id
        self.cells = np.zeros(-(-rows * 4 // 64) * 64 if policy.admit_count > 1 else 0, int)
        self.clock = self.swept = self.added = 0

    def hash(self, key: int, purpose: int) -> int:
        return mixed(key ^ mixed(self.seed + purpose * 0x9E3779B97F4A7C15))

    def default(self, key: int) -> int:
        return (self.hash(key, 3) >> 32) * self.policy.defaults >> 32

    def is_admitted(self, key: int, times: int, now: int) -> bool:
        seen = 255
        if len(self.cells):
            hashed = self.hash(key, 2)
            block = self.cells.reshape(-1, 4, 16)[(hashed >> 32) * (len(self.cells) // 64) >> 32]
            columns = [hashed % 16, hashed // 16 % 16, hashed // 256 % 16, hashed // 4096 % 16]
            seen = min(255, block[range(4), columns].min() + times)
            block[range(4), columns] = np.maximum(block[range(4), columns], seen)
            self.added += times
        drawn = mixed(self.hash(key, 4) + now * 0x9E3779B97F4A7C15) >> 11
        return seen >= self.policy.admit_count and drawn / 2**53 < self.policy.admit_probability

    def score(self, key: int, now: int) -> tuple[float, int, int]:
        row, count, seen = self.of[key]
        rank = {"lru": 0.0, "lfu": count, "distance_lfu": count / (now - seen + 1)}
        return rank[self.policy.evict], seen, row

    def translate(self, ids: list[int], now: int) -> tuple[list[int], list[int]]:
        """Rows and fresh rows; a MemoryError if too few are there, which leaves it undefined."""
        age = self.policy.max_age
        if self.added >= self.rows * max(1, self.policy.admit_count // 2):
            self.cells //= 2
            self.added //= 2
        if age is not None and now - self.swept >= max(1, age // 8):
            self.of = {x: y for x, y in self.of.items() if now - y[2] <= age}
            self.swept = now
        self.clock = now
        batch = dict.fromkeys(ids)
        old = [x for x in batch if x in self.of]
        new = [x for x in batch if x not in self.of and self.is_admitted(x, ids.count(x), now)]
        capacity = self.rows - self.policy.defaults
        if len(old) + len(new) > capacity:
            raise MemoryError
        for key in old:
            self.of[key][1:] = self.of[key][1] + ids.count(key), now
        lacking = len(self.of) + len(new) - capacity
        if lacking > 0:
            others = sorted(self.of.keys() - batch, key=lambda x: self.score(x, now))
            for key in others[: max(lacking, int(capacity * self.policy.evict_share))]:
                del self.of[key]
        free = sorted(
            set(range(self.policy.defaults, self.rows)) - {row for row, _, _ in self.of.values()}
        )
        for key, row in zip(new, free, strict=False):
            self.of[key] = [row, ids.count(key), now]
        return [self.find(x) for x in ids], [self.of[x][0] for x in new]

    def find(self, key: int) -> int:
        return self.of[key][0] if key in self.of else self.default(key)

    def arrays(self) -> dict[str, Any]:
        arrays = {name: [0] * self.rows for name in ("keys", "counts", "last_seen")}
        for key, (row, count, seen) in self.of.items():
            arrays["keys"][row], arrays["counts"][row], arrays["last_seen"][row] = key, count, seen
        numbers = [self.clock, self.swept, self.added, self.seed]
        arrays |= {"sketch": self.cells} if len(self.cells) else {}
        return {**arrays, "numbers": numbers}


def mixed(x: int) -> int:
    """SplitMix64's finalizer."""
    x %= 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.tolist() == list(wanted[name]), name


def check_against_model(policy: DynamicIds, rows: int, seed: int) -> None:
    """About a thousand ids in random batches, looked up, taken back and read again."""
    rng = np.random.default_rng(seed)
    rows += policy.defaults
    ids, model = IdMap(rows, policy, seed), Model(rows, policy, seed)
    exponent, now, states, undos = rng.uniform(1.05, 2), 0, [], []
    for _ in range(BATCHES):
        now += int(rng.choice([0, 1, 1, 5, 30]))
        batch = rng.zipf(exponent, rng.integers(0, IDS + 1)).astype(np.uint64)
        batch = batch * np.uint64(0xBF58476D1CE4E5B9)  # all bits
        before, wanted = copy.deepcopy(model), None
        try:
            wanted = model.translate(batch.tolist(), now)
        except MemoryError:
            model = before
            with pytest.raises(UserError, match="needs rows for"):
                ids.translate(batch, now)
        if wanted is not None:
            found = ids.translate(batch, now)
            assert (found.rows.tolist(), found.fresh.tolist()) == wanted
            undos.append(found.undo)
            states.append(before.arrays())
        assert_same(ids.arrays(), model.arrays())
        assert ids.live == len(model.of)
        assert ids.find(batch).tolist() == [model.find(x) for x in batch.tolist()]
    for ahead in range(1, len(states) + 1, 7):
        assert_same(ids.arrays(undos[-ahead:]), states[-ahead])
    for undo in reversed(undos[len(undos) // 2 :]):
        ids.undo(undo)
    if undos:
        assert_same(ids.arrays(), states[len(undos) // 2])
    assert_same(IdMap.from_arrays(policy, ids.arrays()).arrays(), ids.arrays())


def check_hostile_ids() -> None:
    """Ids of all bits, equal ids, no ids, and a table of one row besides the default."""
    ids = IdMap(10, DynamicIds())
    extreme = np.array([0, -1, -(2**63), 2**63 - 1, 1])
    assert ids.translate(extreme, 5).rows.tolist() == [1, 2, 3, 4, 5]
    assert ids.find(extreme.view(np.uint64)).tolist() == [1, 2, 3, 4, 5]
    assert ids.find(np.array([-1, 7], np.int32)).tolist() == [2, 0]
    assert ids.translate(np.full(3000, 2**64 - 1, np.uint64), 5).rows.tolist() == [2] * 3000
    assert ids.arrays()["counts"].tolist() == [0, 1, 3001, 1, 1, 1, 0, 0, 0, 0]
    nothing = ids.translate(np.zeros(0, np.int64), 6)
    assert len(nothing.rows) == len(nothing.fresh) == len(nothing.undo.rows) == 0
    assert ids.translate(np.full(3000, 2), 7).fresh.tolist() == [6]

    other, was = copy.deepcopy(ids), ids.arrays()
    assert_same(other.arrays(), was)
    assert other.translate(np.array([3, 2]), 8).rows.tolist() == [7, 6]
    assert_same(ids.arrays(), was)

    one = IdMap(2, DynamicIds(), 3)
    for now, key in enumerate([0, 2**63, 2**64 - 1, 0]):
        found = one.translate(np.full(5, key, np.uint64), now)
        assert (found.rows.tolist(), found.fresh.tolist()) == ([1] * 5, [1])


def check_refused() -> None:
    """Batches that are too large, and clocks that run backwards, change nothing in any map."""
    policy = DynamicIds(admit_count=2, max_age=4)
    maps = [IdMap(4, policy, 1, "ads"), IdMap(3, policy, 2, "users")]
    small = np.array([7, 7, 8, 8])
    translate_all(maps, [small, small[:2]], 3)
    before = [x.arrays() for x in maps]
    large = np.array([1, 2, 3, 1, 2, 3])
    with pytest.raises(UserError, match=r"table users: a batch of 6 ids needs rows for 3 .* has 2"):
        translate_all(maps, [large, large], 100)
    with pytest.raises(UserError, match=r"table ads: now: the clock .* got 2 after 3"):
        translate_all(maps, [small, small], 2)
    for now in (-1, 2**62):
        with pytest.raises(UserError, match="now: expected an integer"):
            maps[0].translate(small, now)
    for of, was in zip(maps, before, strict=True):
        assert_same(of.arrays(), was)
        assert of.find(small).tolist() == ([1, 1, 2, 2] if of is maps[0] else [1, 1, 0, 0])
    assert maps[0].translate(large[[0, 3]], 4).fresh.tolist() == [3]


def check_saturation() -> None:
    """A count stays at the largest number of 32 bits."""
    arrays = IdMap(2, DynamicIds()).arrays()
    arrays["keys"][1], arrays["counts"][1] = 5, 2**32 - 2
    ids = IdMap.from_arrays(DynamicIds(), arrays)
    found = ids.translate(np.full(4, 5), 0)
    assert ids.arrays()["counts"].tolist() == [0, 2**32 - 1]
    assert ids.arrays([found.undo])["counts"].tolist() == [0, 2**32 - 2]


def check_copies_are_undone() -> None:
    """A record takes a copy back as it does the map that it was made by."""
    ids = IdMap(6, DynamicIds())
    ids.translate(np.arange(1, 6), 0)
    last = ids.translate(np.array([1]), 1)
    copied = copy.deepcopy(ids)
    for of in (ids, copied):
        of.undo(last.undo)
        found = of.translate(np.arange(11, 16), 1)
        assert found.rows.tolist() == found.fresh.tolist() == [1, 2, 3, 4, 5]
    assert_same(copied.arrays(), {x: y.tolist() for x, y in ids.arrays().items()})


def check_records_of_other_batches() -> None:
    """A record of a batch that isn't the last one, or of another map, is refused."""
    ids, other = IdMap(6, DynamicIds()), IdMap(6, DynamicIds())
    first, second = (ids.translate(np.array([x]), x) for x in (1, 2))
    copied, foreign = copy.deepcopy(ids), other.translate(np.array([1]), 1)
    before = {x: y.tolist() for x, y in ids.arrays().items()}
    for wrong in ([first.undo], [foreign.undo], [second.undo, first.undo], [second.undo] * 2):
        for read in (ids.arrays, ids.keys, copied.arrays):
            with pytest.raises(UserError, match="undo: expected the record of the map's last"):
                read(wrong)
    for wrong in (first.undo, foreign.undo):
        with pytest.raises(UserError, match="table ids: undo: expected the record"):
            ids.undo(wrong)
    assert_same(ids.arrays(), before)
    ids.undo(second.undo)
    third = ids.translate(np.array([3]), 2)
    with pytest.raises(UserError, match="in the reverse of their order, each once"):
        ids.undo(second.undo)
    ids.undo(third.undo)
    ids.undo(first.undo)
    assert ids.live == 0

"""What is counted of row orders, against plain statements of it, and the program as a whole."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from main_job import run

from dlrm_jax.data.arrays import Dataset, Examples, Split
from experiments.frequency.row_order import (
    ORDERS,
    first_lookups,
    hit_rate,
    imbalance,
    in_batches,
    ordered_ids,
    places,
    touched,
    units,
)

PROGRAM = ("-m", "experiments.frequency")
TRAINED = np.array([[3, 2, -1], [3, 0, 1], [5, 1, 1], [3, 1, -1], [5, 2, 1]], np.int32)


def examples(ids: np.ndarray) -> Examples:
    return Examples(np.zeros((len(ids), 1), "f4"), ids, np.zeros(len(ids), "f4"))


@pytest.fixture
def data() -> Dataset:
    """Two tables, of 7 and of 4 rows; the second one's bags have two places."""
    validation = Split((examples(np.array([[3, 1, 2], [6, 0, -1], [5, -1, -1]], np.int32)),))
    return Dataset(
        train=Split((examples(TRAINED[:2]), examples(TRAINED[2:]))),
        validation=validation,
        test=validation,
        table_rows=(7, 4),
        bag_lengths=(1, 2),
        fingerprint="",
        source="",
    )


def test_the_first_lookup_of_each_row(data: Dataset):
    never = np.iinfo(np.int64).max
    found = first_lookups(data.train, slice(0, 1), 7)
    assert found.tolist() == [never, never, never, 0, never, 2, never]
    assert first_lookups(data.train, slice(1, 3), 4).tolist() == [1, 2, 0, never]


def test_rows_by_frequency_and_by_first_appearance():
    rng = np.random.default_rng(0)
    trace = rng.integers(0, 40, 300) ** 2 % 61
    counts = np.bincount(trace, minlength=61)
    first = np.array([np.flatnonzero(trace == r)[0] if r in trace else 999 for r in range(61)])
    found = places(counts, first, rng)
    assert tuple(found) == ORDERS
    for place in found.values():
        assert sorted(place) == list(range(61))
    for i in range(61):
        assert found["frequency"][i] >= np.count_nonzero(counts > counts[i])
        assert found["frequency"][i] < np.count_nonzero(counts >= counts[i])
        if counts[i]:
            assert found["first_seen"][i] == np.count_nonzero(first < first[i])
    never = found["random"][counts == 0]
    assert list(never) != sorted(never), "they don't lie in the order of their ids"


def test_validation_ids_follow_the_training_part(data: Dataset):
    occurrences = [np.bincount(TRAINED[:, 0], minlength=7), np.array([1, 5, 2, 0])]
    found = ordered_ids(data, occurrences, 2, seed=0)
    assert found["frequency"][0].tolist() == [0, 0, 1]
    assert found["frequency"][1][0] >= 2
    assert found["frequency"][1][1:].tolist() == [2, -1]
    assert found["first_seen"][0].tolist() == [0, 2, 0]
    assert found["first_seen"][1][1:].tolist() == [1, -1]
    whole = ordered_ids(data, occurrences, 100, seed=0)["frequency"]
    (batch,) = in_batches(data, whole, 2, most=9)
    assert [rows.tolist() for rows in batch] == [whole[:2, 0].tolist(), [0, 1, 2]]
    assert len(in_batches(data, whole, 1, most=2)) == 2


@pytest.mark.parametrize(("row_bytes", "unit"), [(64, 64), (16, 64), (48, 64), (200, 64)])
def test_lines_are_those_of_the_bytes(row_bytes: int, unit: int):
    rows = np.random.default_rng(0).integers(0, 50, 40)
    expected = [
        line
        for row in rows
        for line in sorted({b // unit for b in range(row * row_bytes, (row + 1) * row_bytes)})
    ]
    assert units(rows, row_bytes, unit).tolist() == expected
    batches = [[rows, rows[:5]], [rows[:1], rows[:0]]]
    counts = [len(set(units(x, row_bytes, unit).tolist())) for batch in batches for x in batch]
    assert touched(batches, row_bytes, unit) == sum(counts) / 2


@pytest.mark.parametrize("lines", [1, 3, 8, 100])
def test_hits_are_those_of_a_cache(lines: int):
    rng = np.random.default_rng(0)
    sizes = (40, 17)
    batches = [[(rows * rng.random(30) ** 2).astype(int) for rows in sizes] for _ in range(5)]
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = accesses = 0
    for batch in batches:
        for table, rows in enumerate(batch):
            for line in rows // 4:  # 16 bytes a row
                accesses += 1
                hits += (table, line) in cache
                cache[table, line] = None
                cache.move_to_end((table, line))
                if len(cache) > lines:
                    cache.popitem(last=False)
    assert hit_rate(batches, sizes, 16, 64, 64 * lines) == hits / accesses


def test_the_busiest_shard():
    batches = [[np.array([0, 0, 0, 4, 1]), np.array([0, 3])], [np.array([1]), np.array([1])]]
    # Loads of two shards: 5 and 2, then 0 and 2; each row once: 3 and 2, then 0 and 2.
    assert imbalance(batches, 2, distinct=False) == (5 / 3.5 + 2) / 2
    assert imbalance(batches, 2, distinct=True) == (3 / 2.5 + 2) / 2
    assert imbalance(batches, 2, distinct=False, turned=True) == (5 / 3.5 + 1) / 2


def test_the_program(tmp_path: Path):
    flags = (
        "--preset=small",
        "--table_rows=3000,50",
        "--bag_lengths=1,3",
        "--examples=4000",
        "--rounds=2",
        f"--workdir={tmp_path}",
    )
    done = run(*flags, "--batch_sizes=64,128", program=PROGRAM)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "frequency.json").read_text())
    counted = found["counted"]["128"]
    rows = {order: counted[order]["rows"] for order in ORDERS}
    assert len(set(rows.values())) == 1
    lines = "64 B lines of accumulator"
    assert counted["frequency"][lines] < counted["random"][lines] <= rows["random"]
    assert counted["random"]["64 B lines of vectors"] == rows["random"]
    for work in ("lookup", "update"):
        own = found["timed"]["64"][work]
        assert own["random"]["ratio"] == [1, 1, 1]
        assert 0 < own["frequency"]["fastest_ms"] <= own["frequency"]["ms"]
    assert (tmp_path / "frequency.png").read_bytes().startswith(b"\x89PNG")
    for more, message in (
        (
            ["--batch_sizes=64,x"],
            "error: --batch_sizes: expected integers with commas, each at least 1",
        ),
        (["--batch_sizes=512"], "error: --batch_sizes: expected at most the 400 validation"),
        (["--mesh=2x4"], "error: --mesh has no effect"),
    ):
        refused = run(*flags, *more, program=PROGRAM)
        assert refused.returncode == 2
        assert refused.stderr.startswith(message), refused.stderr

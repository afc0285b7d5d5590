"""Statistics against counting in plain Python."""

import dataclasses
import math
import tracemalloc
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data import statistics
from dlrm_jax.data.arrays import ABSENT, Dataset, Examples, Split
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.pipeline import Options, preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.statistics import Column, measure
from dlrm_jax.errors import UserError


def examples_of(ids, labels=None):
    labels = [0] * len(ids) if labels is None else labels
    dense = np.zeros((len(ids), 1), np.float32)
    return Examples(dense, np.array(ids, np.int32), np.array(labels, np.int32))


def dataset_of(days, table_rows, bag_lengths):
    *train, validation, test = days
    splits = Split(tuple(train)), Split((validation,)), Split((test,))
    return Dataset(*splits, tuple(table_rows), tuple(bag_lengths), "", "")


def column_of(occurrences):
    return Column("C1", 1, 1.0, np.asarray(occurrences, np.int64), None)


@st.composite
def tables_and_days(draw):
    table_rows = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    bag_lengths = [draw(st.integers(1, 3)) for _ in table_rows]
    ids = st.tuples(
        *(
            st.integers(ABSENT, rows - 1)
            for rows, length in zip(table_rows, bag_lengths, strict=True)
            for _ in range(length)
        )
    )
    example = st.tuples(ids, st.integers(0, 1))
    days = st.lists(st.lists(example, min_size=1, max_size=9), min_size=3, max_size=5)
    return table_rows, bag_lengths, draw(days)


@given(tables_and_days())
def test_counts_are_those_of_plain_python(drawn):
    table_rows, bag_lengths, days = drawn
    examples = [examples_of(*map(list, zip(*day, strict=True))) for day in days]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_CHUNK_ROWS", 4)
        found = measure(dataset_of(examples, table_rows, bag_lengths), None)

    *train, validation, test = days
    days = [*train, validation + test]
    assert [day.examples for day in found.days] == [len(day) for day in days]
    assert [day.positives for day in found.days] == [sum(label for _, label in d) for d in days]
    assert found.days[0].by_split == {"train": len(days[0]), "validation": 0, "test": 0}
    assert found.days[-1].by_split == {
        "train": 0,
        "validation": len(validation),
        "test": len(test),
    }
    assert [column.name for column in found.columns] == [
        f"C{i + 1}" for i in range(len(table_rows))
    ]
    assert found.missing is None
    first = 0
    for column, rows, length in zip(found.columns, table_rows, bag_lengths, strict=True):
        everywhere = [
            [i for ids, _ in day for i in ids[first : first + length] if i != ABSENT]
            for day in days
        ]
        counts = Counter(i for day in everywhere[:-1] for i in day)
        assert column.occurrences.tolist() == [counts[i] for i in range(rows)]
        assert column.touched == len(counts)
        assert column.mean_ids == pytest.approx(
            sum(map(len, everywhere)) / sum(map(len, days)), rel=1e-12
        )
        assert column.unseen is None
        first += length


def test_rows_that_nothing_looks_up_take_no_memory():
    occurrences = np.zeros(2**22, np.int64)
    occurrences[[5, -1]] = 3, 7
    column = column_of(occurrences)
    tracemalloc.start()
    try:
        assert column.descending.tolist() == [7, 3]
        assert column.touched == 2
        assert column.served_by_hottest(2**-22) == 0.7
        assert tracemalloc.get_traced_memory()[1] < 2**18
    finally:
        tracemalloc.stop()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.floats(0.001, 1))
def test_the_hottest_rows_are_the_most_frequent(occurrences, share):
    rows = max(1, round(share * len(occurrences)))
    served = column_of(occurrences).served_by_hottest(share)
    if not any(occurrences):
        assert math.isnan(served)
    else:
        assert served == sum(sorted(occurrences, reverse=True)[:rows]) / sum(occurrences)


def test_ids_that_no_table_has_are_named():
    good = examples_of([[0], [1]])
    for bad in (2, -2):
        data = dataset_of([good, examples_of([[0], [bad]]), good, good], [2], [1])
        with pytest.raises(UserError, match=rf"train, row 3 .*0 to 1.*got {bad}\."):
            measure(data, None)


def test_labels_between_0_and_1_are_positive_above_one_half():
    day = examples_of([[0]] * 4)
    soft = dataclasses.replace(day, labels=np.array([0.1, 0.9, 0.5, 1], np.float32))
    days = measure(dataset_of([soft, day, day], [1], [1]), None).days
    assert [day.positives for day in days] == [2, 0]


SCHEMA = Schema("clicked", ("shop", "viewed"), ("price",), {"viewed": 3})


@pytest.fixture(scope="module")
def log():
    """Seven days of ten rows, whose values come and go."""
    rng = np.random.default_rng(0)
    shops, views = [], []
    for i in range(70):
        shops.append(None if i % 9 == 0 else f"shop {rng.integers(0, 4 + i // 10)}")
        bag = [f"item {x}" for x in rng.integers(0, 5 + i // 10, rng.integers(0, 6))]
        views.append(None if i % 13 == 0 else bag)
    shops[65], views[66] = "a new shop", ["a new item", "item 0"]
    clicked = [i % 3 == 0 for i in range(70)]
    return {"clicked": clicked, "price": [*range(70)], "shop": shops, "viewed": views}


def prepared(log, directory, min_count):
    pl.DataFrame(log).write_parquet(directory / "log.parquet")
    return preprocess([directory / "log.parquet"], directory / "out", Options(SCHEMA, min_count))


@pytest.mark.parametrize("min_count", [1, 4])
def test_missing_and_unseen_values_are_those_of_the_log(log, tmp_path, min_count):
    metadata = prepared(log, tmp_path, min_count)
    found = measure(load_directory(tmp_path / "out"), metadata)
    assert [(day.examples, day.positives) for day in found.days] == [
        (10, sum(log["clicked"][start : start + 10])) for start in range(0, 70, 10)
    ]
    assert found.missing == {
        name: sum(value is None for value in log[name]) / 70 for name in ("price", "shop", "viewed")
    }
    as_bags = {
        "shop": [[shop] for shop in log["shop"]],
        "viewed": [(bag or [])[:3] for bag in log["viewed"]],
    }
    for column, (name, bags) in zip(found.columns, as_bags.items(), strict=True):
        counts = Counter(value for bag in bags[:60] for value in bag)
        known = {value for value, count in counts.items() if count >= min_count} | {None}
        days = [[v for bag in bags[start : start + 10] for v in bag] for start in range(0, 70, 10)]
        assert (column.name, column.bag_length) == (name, SCHEMA.bag_lengths.get(name, 1))
        assert column.unseen is not None
        assert column.unseen == tuple(sum(v not in known for v in day) / len(day) for day in days)
        assert column.unseen[-1] > 0
        assert any(column.unseen[:-1]) == (min_count > 1)
        assert column.mean_ids == sum(map(len, days)) / 70
        rare = sum(count for value, count in counts.items() if value not in known)
        expected = [rare, counts[None], *(counts[value] for value in known - {None})]
        assert sorted(column.occurrences.tolist()) == sorted(expected)
        assert column.occurrences[:2].tolist() == expected[:2]


def test_missing_values_are_shares_of_all_examples(log, tmp_path):
    metadata = prepared(log, tmp_path, 1)
    counts = {"price": 7, "shop": 70, "viewed": 0}
    other = dataclasses.replace(metadata, missing=counts)
    found = measure(load_directory(tmp_path / "out"), other)
    assert found.missing == {"price": 0.1, "shop": 1, "viewed": 0}


def test_without_lookups_no_share_is_made_up(log, tmp_path):
    metadata = prepared(log | {"viewed": [[]] * 69 + [["item"]]}, tmp_path, 1)
    viewed = measure(load_directory(tmp_path / "out"), metadata).columns[1]
    assert viewed.touched == 0
    assert viewed.unseen is not None
    assert all(map(math.isnan, (*viewed.unseen[:-1], viewed.served_by_hottest(0.1))))
    assert viewed.unseen[-1] == 1


@pytest.mark.parametrize("option", [{"compatible": "reference"}, {"multi_hot_sizes": [3, 3]}])
def test_where_id_0_may_be_any_value_none_counts_as_unseen(log, tmp_path, option):
    metadata = prepared(log, tmp_path, 1)
    options = metadata.made_from["options"] | option
    other = dataclasses.replace(metadata, made_from=metadata.made_from | {"options": options})
    found = measure(load_directory(tmp_path / "out"), other)
    assert [column.unseen for column in found.columns] == [None, None]


def test_a_day_may_give_to_several_splits(log, tmp_path):
    prepared(log, tmp_path, 1)
    metadata = Metadata.read(tmp_path / "out")
    data = load_directory(tmp_path / "out")
    moved = dataclasses.replace(
        metadata,
        splits=metadata.splits | {"train": [[0, 0, 10]] * 6, "test": [[0, 0, 5]]},
    )
    days = measure(data, moved).days
    assert days[0].by_split == {"train": 60, "validation": 0, "test": 5}
    assert [day.examples for day in days[1:]] == [0] * 5 + [5]
    assert math.isnan(days[1].label_rate)


def test_a_label_out_of_range_is_named():
    day, bad = examples_of([[0], [1]]), examples_of([[0], [1]], [1, 100])
    with pytest.raises(UserError, match=r"^test, row 1 .* expected a label of 0 to 1, got 100"):
        measure(dataset_of([day, day, bad], [2], [1]), None)

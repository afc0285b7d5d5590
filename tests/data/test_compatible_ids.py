"""Ids and dense features of other programs, against their rules in plain Python."""

import numpy as np
import pytest
from criteo_lines import IN_TIME, dense_of, ids_of, realistic, text

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats import lines
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError


def parsed(lines):
    """Integers and values, those that are missing as 0."""
    fields = [line.split("\t") for line in lines]
    integers = [[int(x or 0) for x in line[1:14]] for line in fields]
    values = [[int(x or "0", 16) for x in line[14:]] for line in fields]
    return integers, values


def by_the_reference(lines, max_ind_range):
    """Dense features, ids and the number of rows of each table."""
    integers, values = parsed(lines)
    dense = np.log(np.maximum(integers, 0).astype(np.float32) + np.float32(1))
    numbers = [{} for _ in range(26)]
    ids = []
    for row in values:
        row = [value % max_ind_range if max_ind_range else value for value in row]
        known = zip(numbers, row, strict=True)
        ids.append([own.setdefault(value, len(own)) for own, value in known])
    return dense, np.array(ids), [len(own) for own in numbers]


def by_torchrec(lines, threshold, max_ind_range):
    """Dense features and ids of one file."""
    integers, values = parsed(lines)
    smallest = min(min(row) for row in integers)
    dense = np.log(np.array(integers, np.int32) - (smallest - 2), dtype=np.float32)
    columns = []
    for column in zip(*values, strict=True):
        own, following = {}, 2
        for value in column:
            if value not in own and column.count(value) < threshold:
                own[value] = 1
            elif value not in own:
                own[value] = following
                following += 1
        ids = [own[value] for value in column]
        columns.append([i % max_ind_range if max_ind_range else i for i in ids])
    return dense, np.array(columns).T


def prepared(path, output, **options):
    preprocess([path], output, Options(**options))
    dataset = load_directory(output)
    ids, dense = (
        np.concatenate([of(dataset, split) for split in IN_TIME]) for of in (ids_of, dense_of)
    )
    return dense, ids, list(dataset.table_rows)


def limits(max_ind_range):
    return (max_ind_range,) if max_ind_range else ()


@pytest.fixture
def criteo(tmp_path, monkeypatch):
    """Negative and missing integers, missing values, zero itself, values that come only late."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", 3000)
    zero = "\t".join(["1", *["2147483"] * 13, *["00000000"] * 26]) + "\n"
    path = tmp_path / "train.txt"
    path.write_text(text(40) + zero + text(60, seed=1))
    return path


@pytest.mark.parametrize("max_ind_range", [0, 3, 10_000_000])
def test_reference(criteo, tmp_path, max_ind_range):
    options = {"compatible": "reference", "max_ind_range": limits(max_ind_range)}
    dense, ids, rows = prepared(criteo, tmp_path / "out", **options)
    expected = by_the_reference(criteo.read_text().splitlines(), max_ind_range)
    np.testing.assert_array_equal(dense, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    assert rows == expected[2]


@pytest.mark.parametrize("min_count", [1, 3, 12])
@pytest.mark.parametrize("max_ind_range", [0, 4])
def test_torchrec(criteo, tmp_path, min_count, max_ind_range):
    options = {"min_count": min_count, "max_ind_range": limits(max_ind_range)}
    dense, ids, rows = prepared(criteo, tmp_path / "out", compatible="torchrec", **options)
    expected = by_torchrec(criteo.read_text().splitlines(), min_count, max_ind_range)
    np.testing.assert_array_equal(dense, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    assert rows == (ids.max(axis=0) + 1).tolist()


def test_torchrec_takes_the_smallest_integer_of_each_day(tmp_path):
    days = [text(9, seed) for seed in range(3)]
    days[1] = days[1].replace("\t-", "\t-1")  # -11, -12
    paths = [tmp_path / f"day_{number}" for number in range(3)]
    for path, content in zip(paths, days, strict=True):
        path.write_text(content)
    preprocess(paths, tmp_path / "out", Options(compatible="torchrec"))
    for number, content in enumerate(days):
        expected, _ = by_torchrec(content.splitlines(), 1, 0)
        found = np.load(tmp_path / "out" / f"day_{number}_dense.npy")
        np.testing.assert_array_equal(found, expected)


def test_lines_as_odd_as_real_ones(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(realistic(200))
    content = path.read_text().splitlines()
    dense, ids, rows = prepared(path, tmp_path / "reference", compatible="reference")
    expected = by_the_reference(content, 0)
    np.testing.assert_array_equal(dense, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    assert rows == expected[2]
    dense, ids, _ = prepared(path, tmp_path / "torchrec", compatible="torchrec", min_count=3)
    expected = by_torchrec(content, 3, 0)
    np.testing.assert_array_equal(dense, expected[0])
    np.testing.assert_array_equal(ids, expected[1])


def test_integers_that_torchrec_cannot_hold(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(40).replace("\t46", "\t4600000000", 1))
    with pytest.raises(UserError, match=r"row 4, column I3: .* got 4600000000"):
        preprocess([path], tmp_path / "out", Options(compatible="torchrec"))


@pytest.mark.parametrize(
    "contradiction",
    [
        {"compatible": "reference", "min_count": 2},
        {"compatible": "reference", "max_rows": 100},
        {"compatible": "torchrec", "max_rows": 100},
        {"compatible": "torchrec", "schema": Schema("y", ("a",))},
        {"compatible": "reference", "max_ind_range": (-1,)},
        {"max_ind_range": (5,)},
    ],
)
def test_options_that_contradict_each_other(contradiction):
    with pytest.raises(UserError, match=r"compatible|max_ind_range"):
        Options(**contradiction)


def test_missing_values_are_counted_though_they_become_0(criteo, tmp_path):
    counts = preprocess([criteo], tmp_path / "out", Options(compatible="torchrec")).missing
    fields = [line.split("\t")[1:] for line in criteo.read_text().splitlines()]
    assert list(counts.values()) == [column.count("") for column in zip(*fields, strict=True)]


def test_ranges_of_their_own_are_the_rows_of_the_tables(criteo, tmp_path):
    ranges = tuple(range(2, 28))
    options = {"compatible": "torchrec", "max_ind_range": ranges}
    _, ids, rows = prepared(criteo, tmp_path / "out", **options)
    _, expected = by_torchrec(criteo.read_text().splitlines(), 1, 0)
    np.testing.assert_array_equal(ids, expected % ranges)
    assert rows == list(ranges)

"""Directories of arrays, ours and those of TorchRec's and MLPerf's scripts."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from dlrm_jax.data.check import check_ids
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats.compression import sampled_hash
from dlrm_jax.data.hstacked import HStacked
from dlrm_jax.data.metadata import FORMAT
from dlrm_jax.errors import UserError

WIDTHS = (3, 1, 2)
ROWS = (10, 4, 100)
SIZES = (6, 5, 7)


def write_day(directory, number, n=None, labels_shape=(-1, 1)):
    """One id a feature, as TorchRec's scripts leave it; the labels tell the rows apart."""
    n = n or SIZES[number]
    rng = np.random.default_rng(number)
    ids = np.stack([rng.integers(0, rows, n) for rows in ROWS], axis=1).astype(np.int32)
    ids[0] = np.array(ROWS) - 1
    labels = np.arange(n, dtype=np.int32) + 100 * number
    np.save(directory / f"day_{number}_dense.npy", rng.random((n, 2), np.float32))
    np.save(directory / f"day_{number}_sparse.npy", ids)
    np.save(directory / f"day_{number}_labels.npy", labels.reshape(labels_shape))
    return ids


def write_multi_hot(directory, number, ids):
    """Feature f with WIDTHS[f] ids: the first as it is."""
    bags = {}
    for f, (width, rows) in enumerate(zip(WIDTHS, ROWS, strict=True)):
        bags[str(f)] = (ids[:, f : f + 1] + np.arange(width, dtype=np.int32)) % np.int32(rows)
    np.savez(directory / f"day_{number}_sparse_multi_hot.npz", **bags)
    return np.hstack(list(bags.values()))


@pytest.fixture
def one_hot(tmp_path):
    return tmp_path, [write_day(tmp_path, number) for number in range(3)]


@pytest.fixture
def multi_hot(one_hot):
    directory, days = one_hot
    ids = [write_multi_hot(directory, number, day) for number, day in enumerate(days)]
    for number in range(3):
        (directory / f"day_{number}_sparse.npy").unlink()
    return directory, ids


def describe(directory, bag_lengths, **changes):
    """The description of days 0 to 2, as preprocessing writes it."""
    content = {
        "made_from": {"format": FORMAT, "inputs": [{"path": "log"}], "options": {}},
        "content_hashes": [],
        "fingerprint": "f",
        "days": list(SIZES),
        "splits": {
            "train": [[0, 0, 6], [1, 0, 5]],
            "test": [[2, 0, 4]],
            "validation": [[2, 4, 7]],
        },
        "columns": ["a", "b", "c"],
        "table_rows": list(ROWS),
        "bag_lengths": list(bag_lengths),
        "missing": dict.fromkeys("abc", 0),
        "skipped_lines": 0,
        "dropped_negatives": 0,
        "smallest": [],
        "grown_from": [],
        "versions": {},
    } | changes
    (directory / "metadata.json").write_text(json.dumps(content))


def ids_of(split):
    return np.concatenate([np.asarray(day.ids) for day in split.days])


def assert_holds(dataset, days):
    np.testing.assert_array_equal(ids_of(dataset.train), np.concatenate(days[:2]))
    last = np.concatenate([ids_of(dataset.validation), ids_of(dataset.test)])
    np.testing.assert_array_equal(last, days[2])
    for name, split in dataset.splits.items():
        check_ids(split, dataset.table_rows, dataset.bag_lengths, name)


def test_one_id_a_feature(one_hot):
    directory, days = one_hot
    dataset = load_directory(directory)
    assert_holds(dataset, days)
    assert dataset.table_rows == ROWS
    assert dataset.bag_lengths == (1, 1, 1)
    assert all(type(day.arrays["ids"]) is np.ndarray for day in dataset.train.days)


def test_the_last_day_is_halved_as_torchrec_does(one_hot):
    """Validation is the first half, the longer one."""
    dataset = load_directory(one_hot[0])
    assert dataset.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104]
    assert dataset.validation.labels.tolist() == [200, 201, 202, 203]
    assert dataset.test.labels.tolist() == [204, 205, 206]


def test_labels_with_one_axis_are_the_same(one_hot):
    directory, _ = one_hot
    expected = load_directory(directory).train.labels
    write_day(directory, 0, labels_shape=-1)
    np.testing.assert_array_equal(load_directory(directory).train.labels, expected)


def test_several_ids_a_feature(multi_hot):
    directory, ids = multi_hot
    dataset = load_directory(directory)
    assert_holds(dataset, ids)
    assert dataset.table_rows == ROWS
    assert dataset.bag_lengths == WIDTHS
    np.testing.assert_array_equal(dataset.train.take(np.array([7, 0])).ids, [ids[1][1], ids[0][0]])


def test_multi_hot_arrays_go_before_those_they_were_made_of(multi_hot):
    directory, ids = multi_hot
    before = load_directory(directory).fingerprint
    for number in range(3):
        write_day(directory, number)
    dataset = load_directory(directory)
    assert_holds(dataset, ids)
    assert dataset.bag_lengths == WIDTHS
    assert dataset.fingerprint != before


def test_the_fingerprint_is_of_content(one_hot, tmp_path_factory):
    """A copy of a directory is the same data, whatever its times."""
    directory, days = one_hot
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(directory, copy, copy_function=shutil.copyfile)
    dataset = load_directory(directory)
    assert load_directory(copy).fingerprint == dataset.fingerprint
    path = copy / "day_1_sparse.npy"
    times = path.stat().st_mtime_ns
    days[1][3, 2] ^= 1
    np.save(path, days[1])
    os.utime(path, ns=(times, times))
    assert load_directory(copy).fingerprint != dataset.fingerprint
    # Checkpoints of earlier versions name the data in these ways.
    files = sorted(directory.glob("day_*"))
    assert dataset.earlier_fingerprints == tuple(
        hashlib.blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()
        for described in (
            [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
            [[path.name, sampled_hash(path)] for path in files],
        )
    )


def test_members_in_any_order(multi_hot):
    directory, ids = multi_hot
    path = directory / "day_1_sparse_multi_hot.npz"
    with np.load(path) as members:
        arrays = dict(members)
    np.savez(path, **dict(reversed(arrays.items())))
    assert_holds(load_directory(directory), ids)


@pytest.mark.parametrize("number", [0, 2])
def test_days_of_int64(one_hot, number):
    directory, days = one_hot
    np.save(directory / f"day_{number}_sparse.npy", days[number].astype(np.int64))
    dataset = load_directory(directory)
    assert_holds(dataset, days)
    assert dataset.table_rows == ROWS
    assert dataset.train.take(np.arange(11)).ids.dtype == np.int32


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**32])
def test_ids_that_do_not_fit_into_int32_are_named(one_hot, value):
    directory, days = one_hot
    ids = days[1].astype(np.int64)
    ids[3, 2] = value
    np.save(directory / "day_1_sparse.npy", ids)
    with pytest.raises(UserError, match=rf"day_1_sparse\.npy, row 3, column 2 .*got {value};"):
        load_directory(directory)


def test_ids_that_do_not_fit_into_int32_are_named_in_members(multi_hot, monkeypatch):
    directory, _ = multi_hot
    monkeypatch.setattr("dlrm_jax.data.id_ranges._CHUNK_ROWS", 2)
    path = directory / "day_2_sparse_multi_hot.npz"
    with np.load(path) as members:
        arrays = dict(members)
    arrays["2"] = arrays["2"].astype(np.int64)
    arrays["2"][5, 1] = 2**40
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf"npz, member 2\.npy, row 5, column 1 .*got {2**40};"):
        load_directory(directory)


def test_largest_ids_are_found_in_every_block(one_hot, monkeypatch):
    directory, days = one_hot
    monkeypatch.setattr("dlrm_jax.data.id_ranges._CHUNK_ROWS", 2)
    days[1][-1] = (2**31 - 1, 77, 5000)
    np.save(directory / "day_1_sparse.npy", days[1])
    assert load_directory(directory).table_rows == (2**31, 78, 5001)


def test_prepared_directories(one_hot):
    directory, days = one_hot
    describe(directory, (1, 1, 1))
    dataset = load_directory(directory)
    assert dataset.test.labels.tolist() == [200, 201, 202, 203]
    assert dataset.directory == directory
    np.testing.assert_array_equal(ids_of(dataset.train), np.concatenate(days[:2]))
    describe(directory, (1, 2), columns=["a", "b"], table_rows=[10, 100])
    assert load_directory(directory).bag_lengths == (1, 2)


@pytest.mark.parametrize("number", range(3))
def test_a_directory_that_is_replaced_between_two_files(tmp_path, monkeypatch, number):
    def map_day(directory, day, groups=(), map_day=DayFiles.map):
        if day == number:
            directory.rename(tmp_path / "before")
            other.rename(directory)
        return map_day(directory, day)

    directory, other = tmp_path / "data", tmp_path / "other"
    for path, fingerprint in ((directory, "f"), (other, "g")):
        path.mkdir()
        for day in range(3):
            write_day(path, day)
        describe(path, (1, 1, 1), fingerprint=fingerprint)
    monkeypatch.setattr(DayFiles, "map", map_day)
    with pytest.raises(UserError, match="data was replaced by other data meanwhile"):
        load_directory(directory)


def test_prepared_directories_with_several_ids_a_feature(multi_hot):
    directory, ids = multi_hot
    describe(directory, WIDTHS)
    dataset = load_directory(directory)
    assert dataset.bag_lengths == WIDTHS
    assert isinstance(dataset.train.days[0].ids, HStacked)
    np.testing.assert_array_equal(ids_of(dataset.train), np.concatenate(ids[:2]))


def test_bag_lengths_that_do_not_agree(multi_hot):
    directory, _ = multi_hot
    describe(directory, (3, 2, 1))
    with pytest.raises(UserError, match=r"day_0_.*npz: expected .* 3, 2, 1 .*json.* got 3, 1, 2;"):
        load_directory(directory)
    for number in range(3):
        (directory / f"day_{number}_sparse_multi_hot.npz").unlink()
        write_day(directory, number)
    with pytest.raises(UserError, match=r"day_0_sparse\.npy: expected arrays of 6 .* got 3;"):
        load_directory(directory)


def test_days_that_are_not_alike(multi_hot):
    directory, _ = multi_hot
    (directory / "day_1_sparse_multi_hot.npz").unlink()
    with pytest.raises(UserError, match=r"day 1 can't be read .*day_1_sparse\.npy"):
        load_directory(directory)
    write_day(directory, 1)
    with pytest.raises(UserError, match=r"day_1_sparse\.npy: expected arrays of 6 .* got 3;"):
        load_directory(directory)


def test_prepared_directories_have_int32(one_hot):
    directory, days = one_hot
    describe(directory, (1, 1, 1))
    np.save(directory / "day_1_sparse.npy", days[1].astype(np.int64))
    with pytest.raises(UserError, match=r"day_1_sparse\.npy: expected int32 .*got int64"):
        load_directory(directory)


def rewritten(name, change):
    def damage(directory):
        path = directory / name
        if path.suffix == ".npy":
            np.save(path, change(np.load(path)))
            return
        with np.load(path) as members:
            arrays = change(dict(members))
        np.savez(path, **arrays)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewritten("day_1_sparse_multi_hot.npz", lambda a: {"0": a["0"], "2": a["2"]}),
         r"expected members 0\.npy, 1\.npy, .* got 0\.npy, 2\.npy"),
        (rewritten("day_1_sparse_multi_hot.npz", lambda a: a | {"1": a["1"].astype(np.float32)}),
         r"day_1_sparse_multi_hot\.npz: .*float32 .* in array 1"),
        (rewritten("day_1_sparse_multi_hot.npz", lambda a: a | {"1": a["1"][:-1]}),
         "5 rows in the first and 4 in array 1"),
        (rewritten("day_2_dense.npy", np.asfortranarray), r"day_2_dense\.npy: .*row-major"),
        (lambda directory: (directory / "day_1_dense.npy").unlink(), "found days 0, 2"),
    ],
)  # fmt: skip
def test_damage_is_named(multi_hot, damage, message):
    directory, _ = multi_hot
    damage(directory)
    with pytest.raises(UserError, match=message) as caught:
        load_directory(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"), [("dense", lambda a: a.astype(np.float64)), ("labels", lambda a: a[:-1])]
)
def test_arrays_that_are_no_examples_are_named(multi_hot, name, change):
    directory, _ = multi_hot
    rewritten(f"day_2_{name}.npy", change)(directory)
    # Where annotations are checked at runtime, the checker is faster.
    with pytest.raises((UserError, TypeCheckError), match=name):
        load_directory(directory)


def test_a_description_that_counts_missing_values_of_other_columns(one_hot):
    directory, _ = one_hot
    describe(directory, (1, 1, 1), missing={"a": 0, "b": 0})
    with pytest.raises(UserError, match="missing: there is no column 'c'"):
        load_directory(directory)

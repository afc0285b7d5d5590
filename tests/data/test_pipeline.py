"""From files to arrays, against the definitions in plain Python."""

import gzip
import shutil

import numpy as np
import polars as pl
import pytest
from criteo_lines import dense_of, expected_ids, ids_of, text
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats import lines
from dlrm_jax.data.formats.compression import zstd
from dlrm_jax.data.preprocessing import day_arrays, encoding, splits, vocabulary
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(70))
    return path


@pytest.mark.parametrize("min_count", [pytest.param(1, marks=pytest.mark.thorough), 9])
def test_arrays_are_what_the_definitions_say(raw, tmp_path, min_count, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(day_arrays, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(encoding, "_PLACES", 80)
    preprocess([raw], tmp_path / "out", Options(min_count=min_count))
    dataset = load_directory(tmp_path / "out")
    fields = [row.split("\t") for row in raw.read_text().splitlines()]
    places = {"train": slice(0, 60), "test": slice(60, 65), "validation": slice(65, 70)}
    for feature in range(26):
        column = [int(row[14 + feature], 16) if row[14 + feature] else None for row in fields]
        ids = expected_ids(column, 60, min_count)
        assert dataset.table_rows[feature] == max(1, *ids[:60]) + 1
        for name, rows in places.items():
            assert ids_of(dataset, name)[:, feature].tolist() == ids[rows]
    assert 0 in ids_of(dataset, "test")
    for name, rows in places.items():
        assert dataset.splits[name].labels.tolist() == [float(row[0]) for row in fields[rows]]
        dense = [[np.log1p(max(int(n or 0), 0)) for n in row[1:14]] for row in fields[rows]]
        np.testing.assert_allclose(dense_of(dataset, name), dense, rtol=1e-6)


def test_arrays_lie_on_disk_as_torchrec_reads_them(raw, tmp_path):
    metadata = preprocess([raw], tmp_path / "out", Options())
    for day in range(7):
        dense, sparse, labels = (
            np.load(tmp_path / "out" / f"day_{day}_{name}.npy", mmap_mode="r")
            for name in ("dense", "sparse", "labels")
        )
        assert (dense.shape, dense.dtype) == ((10, 13), np.float32)
        assert (sparse.shape, sparse.dtype) == ((10, 26), np.int32)
        assert (labels.shape, labels.dtype) == ((10, 1), np.int32)
    assert metadata.days == [10] * 7
    # Without the description it is taken for TorchRec's own.
    (tmp_path / "out" / "metadata.json").unlink()
    shutil.rmtree(tmp_path / "out" / "vocabularies")
    dataset = load_directory(tmp_path / "out")
    assert [len(split) for split in dataset.splits.values()] == [60, 5, 5]


@given(st.integers(14, 100_000))
def test_the_split_of_one_file_is_contiguous_and_even(rows):
    days = splits.even_days(rows)
    split = splits.by_day(days)
    assert [day.rows[0].start for day in days[1:]] == [day.rows[0].stop for day in days[:-1]]
    assert (days[0].rows[0].start, days[-1].rows[0].stop) == (0, rows)
    sizes = [len(day) for day in days]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    (_, first, middle), (_, again, end) = *split["test"], *split["validation"]
    assert (first, again, end) == (0, middle, sizes[-1])
    assert 0 <= middle - (end - middle) <= 1


def test_kaggle_itself_is_split_as_published():
    split = splits.by_day(splits.even_days(45_840_617)).items()
    sizes = {name: sum(stop - start for _, start, stop in own) for name, own in split}
    assert sizes == {"train": 39_291_958, "test": 3_274_330, "validation": 3_274_329}


def test_several_files_are_days(tmp_path):
    content = [text(9, seed) for seed in range(3)]
    paths = [tmp_path / "day_0.gz", tmp_path / "day_1.zst", tmp_path / "day_2"]
    paths[0].write_bytes(gzip.compress(content[0].encode()))
    paths[1].write_bytes(zstd.compress(content[1].encode()))
    paths[2].write_text(content[2])
    metadata = preprocess(paths, tmp_path / "out", Options())
    assert metadata.days == [9, 9, 9]
    assert metadata.splits == {
        "train": [[0, 0, 9], [1, 0, 9]],
        "test": [[2, 0, 5]],
        "validation": [[2, 5, 9]],
    }
    column = [
        int(line.split("\t")[14], 16) if line.split("\t")[14] else None
        for line in "".join(content).splitlines()
    ]
    dataset = load_directory(tmp_path / "out")
    found = np.concatenate(
        [ids_of(dataset, name)[:, 0] for name in ("train", "test", "validation")]
    )
    assert found.tolist() == expected_ids(column, 18)


def damaged(content, kind):
    if kind == "cut":
        return content[: len(content) // 2]
    return content[:-40] + b"\x00" * 32 + content[-8:]


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
@pytest.mark.parametrize("kind", ["cut", "overwritten"])
def test_damaged_compression(tmp_path, compress, kind):
    path = tmp_path / "train.txt.compressed"
    path.write_bytes(damaged(compress(text(200).encode()), kind))
    with pytest.raises(UserError, match="cut short or damaged"):
        preprocess([path], tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


def test_malformed_lines_are_counted_when_skipped(raw, tmp_path):
    raw.write_text("nonsense\n" + text(70) + "1\t2\n")
    with pytest.raises(UserError, match="line 1: expected 40"):
        preprocess([raw], tmp_path / "out", Options())
    metadata = preprocess([raw], tmp_path / "out", Options(on_bad_line="skip"))
    assert (metadata.skipped_lines, sum(metadata.days)) == (2, 70)


def test_too_few_rows(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(13))
    with pytest.raises(UserError, match="at least 14 rows"):
        preprocess([path], tmp_path / "out", Options())


def days_of_text(tmp_path, days=3, lines=200):
    paths = [tmp_path / f"day_{day}" for day in range(days)]
    for seed, path in enumerate(paths):
        path.write_text(text(lines, seed))
    return paths


def rows_of(directory, day):
    dense, ids = (np.load(directory / f"day_{day}_{name}.npy") for name in ("dense", "sparse"))
    return [tuple(row) for row in np.hstack([dense, ids]).tolist()]


@pytest.mark.parametrize(
    ("compatible", "sampled"),
    [pytest.param("", [0, 1], marks=pytest.mark.thorough), ("reference", [0, 1, 2])],
)
def test_negatives_are_dropped_from_training_alone(tmp_path, compatible, sampled):
    paths = days_of_text(tmp_path)
    share = {"drop_negatives": 0.75, "compatible": compatible}
    metadata = preprocess(paths, tmp_path / "out", Options(**share, seed=1))
    preprocess(paths, tmp_path / "again", Options(**share, seed=1))
    preprocess(paths, tmp_path / "other", Options(**share, seed=2))
    kept = 0
    for day, path in enumerate(paths):
        labels = np.load(tmp_path / "out" / f"day_{day}_labels.npy")[:, 0]
        whole = np.array([int(line[0]) for line in path.read_text().splitlines()])
        assert labels.sum() == whole.sum()  # every positive one is there
        kept += len(labels)
        if day in sampled:
            assert 0.1 < (labels == 0).sum() / (whole == 0).sum() < 0.4
        else:
            assert labels.tolist() == whole.tolist()
        assert rows_of(tmp_path / "out", day) == rows_of(tmp_path / "again", day)
    assert metadata.dropped_negatives == 600 - kept
    assert metadata.skipped_lines == 0
    assert rows_of(tmp_path / "out", 0) != rows_of(tmp_path / "other", 0)


def test_negatives_of_a_single_file_are_not_dropped(raw, tmp_path):
    with pytest.raises(UserError, match="validation and test must keep all examples"):
        preprocess([raw], tmp_path / "out", Options(drop_negatives=0.5))


def test_ids_of_other_data_go_on(tmp_path):
    old, new = days_of_text(tmp_path, 2, 100)
    first = preprocess([old], tmp_path / "old", Options())
    new.write_text(new.read_text() + text(70, seed=7).replace("01234567", "0badcafe"))
    second = preprocess([new], tmp_path / "new", Options(), grow=tmp_path / "old")
    assert second.grown_from == [first.fingerprint]
    for i in range(26):
        before, after = (
            dict(
                pl.read_parquet(tmp_path / name / f"vocabularies/{i}.parquet")
                .select("value", "id")
                .rows()
            )
            for name in ("old", "new")
        )
        assert before.items() <= after.items()
    assert sum(second.table_rows) > sum(first.table_rows)
    third = preprocess([old], tmp_path / "third", Options(), grow=tmp_path / "new")
    assert third.grown_from == [first.fingerprint, second.fingerprint]
    for options, message in (
        (Options(compatible="reference"), "with the option compatible can't grow"),
        (Options(multi_hot_sizes=(2,) * 26), "with the option multi_hot_sizes can't grow"),
        (Options(Schema("y", ("a",))), "the schema has"),
    ):
        with pytest.raises(UserError, match=message):
            preprocess([new], tmp_path / "x", options, grow=tmp_path / "old")


def test_data_that_grow_and_are_replaced_meanwhile(tmp_path, monkeypatch):
    def learn(*args, learn=vocabulary.learn):
        learned.append(args)
        if len(learned) == 1:
            preprocess([new], tmp_path / "old", Options(), replace=True)
        return learn(*args)

    def grow():
        return preprocess([new], tmp_path / "out", Options(), grow=tmp_path / "old")

    old, new = days_of_text(tmp_path, 2, 100)
    first, learned = preprocess([old], tmp_path / "old", Options()), []
    expected = preprocess([new], tmp_path / "expected", Options(), grow=tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr(vocabulary, "learn", learn)
        with pytest.raises(UserError, match="old was replaced by other data meanwhile"):
            grow()
    preprocess([old], tmp_path / "old", Options(), replace=True)
    resumed = grow()  # nothing is left of the other data's vocabularies
    assert resumed.grown_from == [first.fingerprint]
    assert resumed.table_rows == expected.table_rows
    for i in range(26):
        name = f"vocabularies/{i}.parquet"
        frames = (pl.read_parquet(tmp_path / output / name) for output in ("expected", "out"))
        assert next(frames).equals(next(frames))


def test_mlperfs_multi_hot_ids(raw, tmp_path):
    sizes = (3, 1, 2, *[1] * 23)
    options = Options(compatible="torchrec", max_ind_range=(5,), multi_hot_sizes=sizes)
    preprocess([raw], tmp_path / "out", options)
    preprocess([raw], tmp_path / "one", Options(compatible="torchrec", max_ind_range=(5,)))
    random = np.random.RandomState(0)
    tables = []
    rows = load_directory(tmp_path / "one").table_rows
    for count, size in zip(rows, sizes, strict=True):
        drawn = random.randint(0, count, size=(count, size - 1))
        tables.append(np.hstack([np.arange(count)[:, None], drawn]))
    for day in range(7):
        one = np.load(tmp_path / "one" / f"day_{day}_sparse.npy")
        with np.load(tmp_path / "out" / f"day_{day}_sparse_multi_hot.npz") as found:
            for i, table in enumerate(tables):
                np.testing.assert_array_equal(found[str(i)], table[one[:, i]])
    dataset = load_directory(tmp_path / "out")
    assert (dataset.bag_lengths, dataset.table_rows) == (sizes, rows)


def test_a_file_given_twice(raw, tmp_path):
    with pytest.raises(UserError, match=r"train\.txt is listed twice"):
        preprocess([raw], tmp_path / "out", Options(), [raw, tmp_path / "test.txt"])


def test_an_empty_directory_is_no_obstacle(raw, tmp_path):
    (tmp_path / "out").mkdir()
    assert sum(preprocess([raw], tmp_path / "out", Options()).days) == 70
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"out exists .*: min_count was 1, now 2; delete it, or"):
        preprocess([raw], tmp_path / "out", Options(min_count=2))


def test_what_a_user_has_made_is_not_to_be_deleted(raw, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    for output in (tmp_path / "other", raw):
        with pytest.raises(UserError) as raised:
            preprocess([raw], output, Options())
        message = str(raised.value)
        assert message.startswith(f"{output} is in the way: no metadata.json in it says that")
        assert "delete" not in message
        assert "Error" not in message


def test_differences_are_named_by_flags(raw, tmp_path):
    others = [tmp_path / "validation.txt", tmp_path / "test.txt"]
    for seed, path in enumerate(others, 1):
        path.write_text(text(14 + seed))
    preprocess([raw], tmp_path / "out", Options())
    with pytest.raises(UserError, match="--validation and --test: not given before, now given"):
        preprocess([raw], tmp_path / "out", Options(), others)
    with pytest.raises(UserError, match="--grow: not given before, now given"):
        preprocess([raw], tmp_path / "out", Options(), grow=tmp_path / "out")


def test_a_copy_of_a_training_file_neither_validates_nor_tests(raw, tmp_path):
    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    copy.write_bytes(raw.read_bytes())
    other.write_text(text(14))
    for held_out in ([copy, other], [other, copy]):
        with pytest.raises(UserError, match=r"copy\.txt is a copy of .*train\.txt; examples must"):
            preprocess([raw], tmp_path / "out", Options(), held_out)

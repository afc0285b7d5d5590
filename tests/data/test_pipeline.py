import errno
import gzip
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard
from criteo_lines import expected_ids, text
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data import criteo_text
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.npy import ArrayWriter
from dlrm_jax.data.preprocessing import encoding, pipeline, sources
from dlrm_jax.data.preprocessing.pipeline import Options, cut, preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

IN_TIME = ("train", "test", "validation")


def ids_of(dataset, split):
    return np.concatenate([day.ids for day in dataset.splits[split].days])


def dense_of(dataset, split):
    return np.concatenate([day.dense for day in dataset.splits[split].days])


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(70))
    return path


@pytest.mark.parametrize("min_count", [1, 9])
def test_arrays_are_what_the_definitions_say(raw, tmp_path, min_count, monkeypatch):
    monkeypatch.setattr(criteo_text, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(encoding, "_ROWS_PER_BLOCK", 7)
    monkeypatch.setattr(encoding, "_ROWS_PER_JOIN", 11)
    preprocess([raw], tmp_path / "out", Options(min_count=min_count))
    dataset = load_directory(tmp_path / "out")
    fields = [row.split("\t") for row in raw.read_text().splitlines()]
    splits = {"train": slice(0, 60), "test": slice(60, 65), "validation": slice(65, 70)}
    for feature in range(26):
        column = [int(row[14 + feature], 16) if row[14 + feature] else None for row in fields]
        ids = expected_ids(column, 60, min_count)
        assert dataset.table_rows[feature] == max(1, *ids[:60]) + 1
        for name, lines in splits.items():
            assert ids_of(dataset, name)[:, feature].tolist() == ids[lines]
    assert 0 in ids_of(dataset, "test")
    for name, lines in splits.items():
        assert dataset.splits[name].labels.tolist() == [float(row[0]) for row in fields[lines]]
        dense = [[np.log1p(max(int(n or 0), 0)) for n in row[1:14]] for row in fields[lines]]
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
    days, splits = cut([rows])
    assert [day.start for day in days[1:]] == [day.stop for day in days[:-1]]
    assert (days[0].start, days[-1].stop) == (0, rows)
    sizes = [day.stop - day.start for day in days]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    (_, first, middle), (_, again, end) = *splits["test"], *splits["validation"]
    assert (first, again, end) == (0, middle, sizes[-1])
    assert 0 <= middle - (end - middle) <= 1


def test_kaggle_itself_is_split_as_published():
    _, splits = cut([45_840_617])
    sizes = {name: sum(stop - start for _, start, stop in parts) for name, parts in splits.items()}
    assert sizes == {"train": 39_291_958, "test": 3_274_330, "validation": 3_274_329}


def test_several_files_are_days(tmp_path):
    content = [text(9, seed) for seed in range(3)]
    paths = [tmp_path / "day_0.gz", tmp_path / "day_1.zst", tmp_path / "day_2"]
    paths[0].write_bytes(gzip.compress(content[0].encode()))
    paths[1].write_bytes(zstandard.compress(content[1].encode()))
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


def test_rare_values_share_rows_above_the_limit(tmp_path):
    values = pl.DataFrame({"value": [v for v in range(100) for _ in range(100 - v)]})
    table = pipeline.vocabulary.learn(values.lazy(), max_rows=40)
    assert pipeline.vocabulary.rows(table) == 40
    assert table["id"].to_list()[:33] == list(range(2, 35))
    assert set(table["id"].to_list()[33:]) == set(range(35, 40))


def test_a_users_own_log(tmp_path):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "when": range(40),
            "clicked": rng.random(40) < 0.5,
            "price": [None, *rng.normal(size=39)],
            "shop": [None if x == 0 else f"shop {x}" for x in rng.integers(0, 5, 40)],
            "seen": [[int(x) for x in rng.integers(0, 9, n)] for n in rng.integers(0, 6, 40)],
            "importance": rng.random(40),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    schema = tmp_path / "schema.json"
    fields = {
        "label": "clicked",
        "dense": ["price"],
        "categorical": ["shop", "seen"],
        "bag_lengths": {"seen": 3},
        "weight": "importance",
        "dense_transform": "none",
    }
    schema.write_text(json.dumps(fields))
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(Schema.from_json(schema)))
    dataset = load_directory(tmp_path / "out")
    assert dataset.bag_lengths == (1, 3)
    train = len(dataset.train)
    ids = np.concatenate([ids_of(dataset, name) for name in IN_TIME])
    assert ids[:, 0].tolist() == expected_ids(frame["shop"].to_list(), train)
    seen = [x for bag in frame["seen"].to_list()[:train] for x in bag[:3]]
    by_frequency = sorted(set(seen), key=lambda v: (-seen.count(v), v))
    known = {value: i + 2 for i, value in enumerate(by_frequency)}
    for bag, found in zip(frame["seen"].to_list(), ids[:, 1:].tolist(), strict=True):
        expected = [known.get(x, 0) for x in bag[:3]]
        assert found == expected + [-1] * (3 - len(expected))
    dense = np.concatenate([dense_of(dataset, name)[:, 0] for name in IN_TIME])
    np.testing.assert_allclose(dense, frame["price"].fill_null(0).to_numpy(), rtol=1e-6)
    weights = np.concatenate(
        [day.arrays["weights"] for name in IN_TIME for day in dataset.splits[name].days]
    )
    np.testing.assert_allclose(weights, frame["importance"].to_numpy(), rtol=1e-6)
    # The vocabulary maps ids back to what the user knows.
    shops = pl.read_parquet(tmp_path / "out" / "vocabularies" / "0.parquet")
    assert set(shops["value"]) == set(frame["shop"][:train].drop_nulls())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "nothing"}, "has no column 'nothing' that the schema names"),
        ({"label": "shop"}, "row 1, column shop: expected 0 or 1, got 'a'"),
        ({"dense": ["shop2"]}, "row 1, column shop2: expected a finite number or nothing, got 'a'"),
        ({"dense": ["big"]}, "row 3, column big: expected a finite number or nothing, got inf"),
        ({"weight": "debt"}, "row 2, column debt: expected a number of at least 0, got -1.0"),
        ({"categorical": ["nested"]}, "column nested: expected a list of values"),
        ({"categorical": ["bag"]}, "column bag holds lists: the schema's bag_lengths"),
        ({"bag_lengths": {"shop": 3}}, "column shop: the schema gives a bag length"),
    ],
)
def test_logs_that_do_not_fit_their_schema(tmp_path, change, message):
    frame = pl.DataFrame(
        {
            "y": [0, 1] * 10,
            "shop": ["a"] * 20,
            "shop2": ["a"] * 20,
            "bag": [[1]] * 20,
            "nested": [[[1]]] * 20,
            "big": [0.0, None, np.inf, *[1.0] * 17],
            "debt": [1.0, -1.0] * 10,
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    fields = {"label": "y", "categorical": ["shop"], **change}
    if change.get("label") == "shop":
        fields["categorical"] = ["bag"]
        fields["bag_lengths"] = {"bag": 1}
    (tmp_path / "schema.json").write_text(json.dumps(fields))
    schema = Schema.from_json(tmp_path / "schema.json")
    with pytest.raises(UserError, match=message):
        preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(schema))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "y"}, "categorical"),
        ({"label": "y", "categorical": []}, "at least one categorical"),
        ({"label": "y", "categorical": ["y"]}, "'y' is named more than once"),
        ({"label": "y", "categorical": ["a"], "colour": 1}, "its fields are label"),
        ({"label": "y", "categorical": ["a"], "bag_lengths": {"b": 1}}, "isn't categorical"),
        ({"label": "y", "categorical": ["a"], "dense_transform": "sqrt"}, "one of log, none"),
    ],
)
def test_bad_schemas(tmp_path, fields, message):
    (tmp_path / "schema.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        Schema.from_json(tmp_path / "schema.json")


def test_another_input_or_option_is_named(raw, tmp_path):
    out = tmp_path / "out"
    preprocess([raw], out, Options())
    with pytest.raises(UserError, match="min_count was 1, now 2"):
        preprocess([raw], out, Options(min_count=2))
    raw.write_text(text(70, seed=1))
    with pytest.raises(UserError, match="inputs were"):
        preprocess([raw], out, Options())


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stopped", ["parse_block", "learn", "encode", "append"])
def test_an_interrupted_run_goes_on(raw, tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(criteo_text, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(encoding, "_ROWS_PER_BLOCK", 7)
    owners = {
        "parse_block": criteo_text,
        "learn": pipeline.vocabulary,
        "encode": pipeline.vocabulary,
        "append": ArrayWriter,
    }
    calls, limit = [], 3

    def counted(function):
        def call(*args, **kwargs):
            calls.append(args)
            if limit and len(calls) > limit:
                raise StoppedError
            return function(*args, **kwargs)

        return call

    owner = owners[stopped]
    monkeypatch.setattr(owner, stopped, counted(getattr(owner, stopped)))
    with pytest.raises(StoppedError):
        preprocess([raw], tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()
    before, limit = len(calls), 0
    preprocess([raw], tmp_path / "out", Options())
    interrupted = len(calls) - before
    preprocess([raw], tmp_path / "whole", Options())
    whole = len(calls) - before - interrupted
    if stopped != "append":  # a half-written array is written again from its beginning
        assert interrupted == whole - 3
    for path in sorted((tmp_path / "whole").glob("*.npy")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_what_another_run_left_is_not_used(raw, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_day", lambda *args: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            preprocess([raw], tmp_path / "out", Options(min_count=9))
    preprocess([raw], tmp_path / "out", Options())
    preprocess([raw], tmp_path / "other", Options())
    for path in (tmp_path / "other").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_full_disk_is_one_error(raw, tmp_path, monkeypatch):
    def full(self, block):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "append", full)
        with pytest.raises(UserError, match=r"No space left on device\. What is finished is kept"):
            preprocess([raw], tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()
    preprocess([raw], tmp_path / "out", Options())


def test_a_file_that_grows_while_it_is_read(raw, tmp_path, monkeypatch):
    parse = criteo_text.parse_block

    def growing(block, path, first_line, on_bad_line):
        if first_line == 1:
            with raw.open("a") as file:
                file.write(text(1))
        return parse(block, path, first_line, on_bad_line)

    monkeypatch.setattr(criteo_text, "parse_block", growing)
    with pytest.raises(UserError, match="changed while it was read"):
        preprocess([raw], tmp_path / "out", Options())


def test_csv_keeps_values_as_they_are_written(tmp_path):
    lines = ["y,price,shop", *(f"{'true' if i % 2 else 'false'},{i},00{i % 3}" for i in range(40))]
    lines[3] = "0,,7"
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    schema = Schema("y", ("shop",), ("price",), dense_transform="none")
    preprocess([tmp_path / "log.csv"], tmp_path / "out", Options(schema))
    table = pl.read_parquet(tmp_path / "out" / "vocabularies" / "0.parquet")
    assert set(table["value"]) == {"000", "001", "002", "7"}
    dataset = load_directory(tmp_path / "out")
    assert dense_of(dataset, "train")[:4, 0].tolist() == [0, 1, 0, 3]
    assert dataset.train.labels[:4].tolist() == [0, 1, 0, 1]


def test_days_of_different_types(tmp_path):
    for number, values in enumerate([[1, 2], ["a", "b"]]):
        pl.DataFrame({"y": [0, 1], "shop": values}).write_parquet(tmp_path / f"{number}.parquet")
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    with pytest.raises(UserError, match=r"shop is Int64 in .*0\.parquet, but String in .*1\.parq"):
        preprocess(paths, tmp_path / "out", Options(Schema("y", ("shop",))))


def test_a_damaged_output_is_named(raw, tmp_path):
    preprocess([raw], tmp_path / "out", Options())
    (tmp_path / "out" / "day_3_dense.npy").unlink()
    with pytest.raises(UserError, match="the arrays of day 3 can't be read"):
        preprocess([raw], tmp_path / "out", Options())
    (tmp_path / "out" / "metadata.json").unlink()
    with pytest.raises(UserError, match="found days 0, 1, 2, 4"):
        load_directory(tmp_path / "out")


def test_what_is_finished_but_not_renamed_is_kept(raw, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_remove", lambda path: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            preprocess([raw], tmp_path / "out", Options())
    monkeypatch.setattr(pipeline, "_run", None)  # isn't needed any more
    preprocess([raw], tmp_path / "out", Options())
    assert len(load_directory(tmp_path / "out").train) == 60


def damaged(content, kind):
    if kind == "cut":
        return content[: len(content) // 2]
    return content[:-40] + b"\x00" * 32 + content[-8:]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
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


def test_threads_that_make_the_same_output_make_it_once(raw, tmp_path, monkeypatch):
    opened = []
    source = sources.Source.parts
    monkeypatch.setattr(
        sources.Source, "parts", lambda self: (opened.append(self), (yield from source(self)))
    )
    threads = [
        threading.Thread(target=preprocess, args=([raw], Path(tmp_path / "out"), Options()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert len(load_directory(tmp_path / "out").train) == 60

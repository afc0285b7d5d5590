"""Splits by each rule: whole, of the promised rows, and the same again."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from criteo_lines import ids_of, text

from dlrm_jax.cli.split_table import unseen_by_split
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.given_split import read_split
from dlrm_jax.data.metadata import METADATA, Metadata
from dlrm_jax.data.preprocessing import day_arrays, encoding, freshness, sources
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.split_rule import PARTS
from dlrm_jax.data.special_ids import UNSEEN
from dlrm_jax.errors import UserError

ROWS = 120
START = datetime.datetime(2026, 2, 27, 22, 30)
TIMED = Schema(
    "y", ("item", "seen"), ("row",), {"seen": 2}, timestamp="when", dense_transform="none"
)
UNTIMED = dataclasses.replace(TIMED, timestamp=None)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> list[Path]:
    """A log in two files: an hour a row, thirty users, a column that says the split."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "y": rng.integers(0, 2, ROWS),
            "item": rng.integers(0, 50, ROWS),
            "seen": [[i % 7, i % 11][: i % 3] for i in range(ROWS)],
            "row": np.arange(ROWS),
            "when": [START + datetime.timedelta(hours=i) for i in range(ROWS)],
            "user": [None if i % 40 == 7 else i * 7 % 30 for i in range(ROWS)],
            "role": rng.choice(PARTS, ROWS),
            "empty": pl.Series([None] * ROWS),
            "took": [datetime.timedelta(seconds=i) for i in range(ROWS)],
        }
    )
    directory = tmp_path_factory.mktemp("log")
    paths = [directory / "0.parquet", directory / "1.parquet"]
    frame[:70].write_parquet(paths[0])
    frame[70:].write_parquet(paths[1])
    frame.write_parquet(directory / "all.parquet")
    return [*paths, directory / "all.parquet"]


def rows_of(directory: Path) -> dict[str, list[int]]:
    """The number of each row, by split."""
    data = load_directory(directory)
    return {
        name: [int(x) for day in split.days for x in day.dense[:, 0]]
        for name, split in data.splits.items()
    }


def prepared(log, output: Path, split: str, schema=TIMED, **options) -> dict[str, list[int]]:
    preprocess(log[:2], output, Options(schema, split=split, **options))
    return rows_of(output)


@pytest.mark.parametrize(
    ("split", "schema", "edges"),
    [
        ("", TIMED, (96, 108)),
        ("time:0.25,0.5", TIMED, (30, 60)),
        ("time:0,0.1", TIMED, (108, 108)),
        ("time:2d,1d", TIMED, (50, 98)),
        ("time:1d,0d", TIMED, (98, 120)),
        ("time", UNTIMED, (96, 108)),
    ],
)
def test_by_time_validation_is_before_test(log, tmp_path, split, schema, edges):
    found = prepared(log, tmp_path / "out", split, schema)
    expected = [range(edges[0]), range(*edges), range(edges[1], ROWS)]
    assert found == dict(zip(PARTS, map(list, expected), strict=True))


def test_rows_of_one_time_stay_together(log, tmp_path):
    dates = pl.read_parquet(log[2]).with_columns(pl.col("when").dt.date())
    dates.write_parquet(tmp_path / "dates.parquet")
    options = Options(TIMED, split="time:0.2,0.1")
    metadata = preprocess([tmp_path / "dates.parquet"], tmp_path / "out", options)
    found = rows_of(tmp_path / "out")
    assert [len(found[name]) for name in PARTS] == [74, 24, 22]  # a date each
    assert metadata.times["test"] == ["2026-03-04 00:00:00"] * 2
    for size in ("0.9,0.05", "3d,3d"):
        with pytest.raises(UserError, match=f"--split=time:{size}: expected"):
            preprocess(
                [tmp_path / "dates.parquet"], tmp_path / "x", Options(TIMED, split=f"time:{size}")
            )


def users_of(log, rows):
    users = pl.read_parquet(log[2])["user"]
    return {users[row] for row in rows} - {None}


@pytest.mark.parametrize(
    ("split", "schema"),
    [("user=user:0.2,0.3", TIMED), ("fraction:0.2,0.3", UNTIMED), ("column=role", UNTIMED)],
)
def test_by_row_every_row_is_in_one_split_in_its_order(log, tmp_path, split, schema, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 16)
    monkeypatch.setattr(day_arrays, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(encoding, "_PLACES", 99)
    found = prepared(log, tmp_path / "out", split, schema)
    assert sorted(row for rows in found.values() for row in rows) == list(range(ROWS))
    assert all(rows == sorted(rows) for rows in found.values())
    metadata = Metadata.read(tmp_path / "out")
    assert sum(metadata.days) == ROWS
    assert len(metadata.days) == (7 if schema.timestamp else 2)  # a date lies in both files
    role = pl.read_parquet(log[2])["role"]
    if split.startswith("column"):
        assert all(role[row] == name for name, rows in found.items() for row in rows)
    else:
        assert metadata.made_from["options"]["split"] == split
    if split.startswith("user"):
        users = [users_of(log, rows) for rows in found.values()]
        assert len(set.union(*users)) == sum(map(len, users)) == 30
        nobody = [row for row in range(ROWS) if row % 40 == 7]
        assert set(nobody) <= set(found["train"])
    # The vocabulary has the training rows' items alone.
    items = pl.read_parquet(log[2])["item"]
    learned = pl.read_parquet(tmp_path / "out" / "vocabularies" / "0.parquet")
    counts = {}
    for row in found["train"]:
        counts[items[row]] = counts.get(items[row], 0) + 1
    assert dict(learned.select("value", "count").rows()) == counts
    data = load_directory(tmp_path / "out")
    ids = dict(learned.select("value", "id").rows())
    for name, rows in found.items():
        encoded = np.concatenate([np.asarray(day.ids[:]) for day in data.splits[name].days])
        assert encoded[:, 0].tolist() == [ids.get(items[row], 0) for row in rows]
        assert (encoded[:, 1:] >= 0).sum(1).tolist() == [row % 3 for row in rows]


def test_a_user_is_the_same_in_every_form(log, tmp_path):
    """Integers, whole floats and text; chunks and files don't matter."""
    frame = pl.read_parquet(log[2])
    expected = None
    for form in (pl.Int64, pl.Float64, pl.Categorical):
        values = pl.col("user").cast(pl.String) if form == pl.Categorical else pl.col("user")
        frame.with_columns(values.cast(form)).write_parquet(tmp_path / "log.parquet")
        name = str(form)
        options = Options(UNTIMED, split="user=user:0.3,0.3")
        preprocess([tmp_path / "log.parquet"], tmp_path / name, options)
        expected = expected or rows_of(tmp_path / name)
        assert rows_of(tmp_path / name) == expected


def test_users_that_have_trained_do_not_test_data_that_grow(log, tmp_path):
    options = Options(UNTIMED, split="user=user:0.3,0.3", seed=1)
    before, after = tmp_path / "before", tmp_path / "after"
    preprocess(log[:1], before, options)
    for changed in ({"seed": 2}, {"split": "user=item:0.3,0.3"}, {"split": "user=user:0.3,0.4"}):
        with pytest.raises(
            UserError, match=r"^grow: the data that grow have --split=user=user:0.3,0.3 --seed=1"
        ):
            preprocess(log[1:2], after, dataclasses.replace(options, **changed), grow=before)
    for changed in ({}, {"seed": 2, "split": "none"}):
        preprocess(log[1:2], after, dataclasses.replace(options, **changed), (), before, True)


def test_criteos_columns_split_rows_too(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(70))
    metadata = preprocess([path], tmp_path / "out", Options(split="user=C1:0.3,0.3", seed=2))
    assert metadata.days == [70]
    assert "C1 is a categorical feature: no training row has" in str(unseen_by_split(metadata))
    data = load_directory(tmp_path / "out")
    assert sum(map(len, data.splits.values())) == 70
    for name in ("validation", "test"):
        assert set(ids_of(data, name)[:, 0].tolist()) == {UNSEEN}
    assert UNSEEN not in ids_of(data, "train")[:, 0]


def test_an_interrupted_split_by_row_goes_on(log, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 16)
    parsed, limit = [], 4

    def parse(self, *args, parse=sources.Source._parsed):
        parsed.append(args)
        if len(parsed) == limit:
            raise KeyboardInterrupt
        return parse(self, *args)

    monkeypatch.setattr(sources.Source, "_parsed", parse)
    with pytest.raises(KeyboardInterrupt):
        prepared(log, tmp_path / "out", "fraction:0.2,0.2")
    columns = tmp_path / "out.partial" / "columns" / "0"
    (columns / "1-000001.arrow").write_bytes(b"")  # as a power cut leaves it
    found = prepared(log, tmp_path / "out", "fraction:0.2,0.2")
    assert len(parsed) == limit + 9 - 1  # of 5 + 4 chunks the first was kept
    assert found == prepared(log, tmp_path / "whole", "fraction:0.2,0.2")
    for path in (tmp_path / "whole").glob("day_*"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert found != prepared(log, tmp_path / "other", "fraction:0.2,0.2", seed=1)


def test_nothing_is_held_out(log, tmp_path):
    found = prepared(log, tmp_path / "out", "none")
    assert found == {"train": list(range(ROWS)), "validation": [], "test": []}


def test_negatives_are_dropped_from_training_rows_alone(log, tmp_path):
    labels = pl.read_parquet(log[2])["y"]
    whole = prepared(log, tmp_path / "whole", "fraction:0.3,0.3")
    found = prepared(log, tmp_path / "out", "fraction:0.3,0.3", drop_negatives=0.9)
    for name in PARTS:
        left = set(whole[name]) - set(found[name])
        assert bool(left) == (name == "train")
        assert not any(labels[row] for row in left)
    with pytest.raises(UserError, match="when a split by time isn't known yet; give --split=days"):
        prepared(log, tmp_path / "time", "", drop_negatives=0.5)


def test_a_given_split(log, tmp_path, monkeypatch):
    roles = pl.read_parquet(log[2])["role"].to_list()
    names, numbers = tmp_path / "split.txt", tmp_path / "split.npz"
    names.write_text("\n".join(roles) + "\n")
    arrays = {name: [i for i in range(ROWS) if roles[i] == name] for name in PARTS}
    np.savez(numbers, **arrays)  # pyright: ignore[reportArgumentType]
    found = prepared(log, tmp_path / "out", f"rows={names}")
    assert found == arrays == prepared(log, tmp_path / "numbers", f"rows={numbers}")
    with monkeypatch.context() as patch:
        patch.setattr(freshness, "begin", lambda *args: names.write_text("train\n" * ROWS))
        with pytest.raises(UserError, match=r"split.txt changed while it was read"):
            prepared(log, tmp_path / "changed", f"rows={names}")
    names.write_text("\n".join(roles) + "\n")
    moved = names.rename(tmp_path / "moved.txt")
    assert prepared(log, tmp_path / "out", f"rows={moved}") == found  # it is there already
    moved.write_text("\n".join(reversed(roles)))
    with pytest.raises(UserError, match=r"--split was rows=.*, now rows="):
        prepared(log, tmp_path / "out", f"rows={moved}")
    arrays = {"train": np.arange(ROWS), "validation": np.array([]), "test": []}
    np.savez(numbers, **arrays)
    assert not read_split(numbers).any(), "NumPy's empty arrays are of floats"
    for lines in (roles[:-1], [*roles, "test"]):
        moved.write_text("\n".join(lines))
        with pytest.raises(UserError, match=rf"split of {len(lines)} rows, but the logs have"):
            prepared(log, tmp_path / "other", f"rows={moved}")


def test_a_directory_of_an_earlier_version_stays(log, tmp_path, caplog):
    """It had a timestamp, and its split was by days; its options don't say so."""
    metadata = preprocess(log[:2], tmp_path / "out", Options(TIMED, split="days"))
    fields = json.loads((tmp_path / "out" / METADATA).read_text())
    assert "split" not in fields["made_from"]["options"]
    del fields["times"]
    (tmp_path / "out" / METADATA).write_text(json.dumps(fields))
    again = preprocess(log[:2], tmp_path / "out", Options(TIMED))
    assert again.fingerprint == metadata.fingerprint
    assert "is split as earlier versions did, and stays so: --split=days" in caplog.text
    with pytest.raises(UserError, match=r"--split was days, now time:0.1,0.1"):
        preprocess(log[:2], tmp_path / "out", Options(TIMED, split="time"))


def test_rules_that_do_not_fit_are_refused(log, tmp_path):
    for split, message in [
        ("user=nobody", "0.parquet has no column 'nobody' that --split=user=nobody:0.1,0.1 names"),
        ("column=user", "row 1, column user: expected train, validation or test, got '0'"),
        ("user=user:0.0001,0", "expected rows for validation, got 0|expected rows for validation"),
        ("user=empty", "validation, got .* another --seed; rows without a value of empty train"),
        ("user=took", "0.parquet, column took: .* one number, text or date a row, got Duration"),
        ("files", "files needs --test=FILE, with --validation=FILE or without it"),
        ("rows=none.txt", "expected rows=FILE with a file that can be read, got none.txt"),
    ]:
        with pytest.raises(UserError, match=message):
            prepared(log, tmp_path / "out", split)
    at_once = pl.read_parquet(log[1]).with_columns(when=pl.lit(START))
    at_once.write_parquet(tmp_path / "at once.parquet")
    with pytest.raises(
        UserError, match=r"got 0 for training, 0 for validation, 50 for test \(rows"
    ):
        prepared([tmp_path / "at once.parquet"], tmp_path / "out", "time")
    pl.read_parquet(log[1]).drop("role").write_parquet(tmp_path / "last.parquet")
    with pytest.raises(UserError, match=r"last.parquet has no column 'role'"):
        prepared([log[0], tmp_path / "last.parquet"], tmp_path / "lacks", "column=role")
    assert not (tmp_path / "lacks.partial" / "columns").exists()  # nothing was read in vain
    with pytest.raises(UserError, match="files for validation and test are the split"):
        preprocess(log[:1], tmp_path / "out", Options(TIMED, split="time"), [log[1], log[2]])

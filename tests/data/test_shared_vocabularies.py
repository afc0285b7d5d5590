"""Columns that share a vocabulary: one set of values, ids that mean the same, one table."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from served import encode_logs

from dlrm_jax.cli.data_report import write_report
from dlrm_jax.config import Config
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.statistics import measure
from dlrm_jax.errors import UserError
from dlrm_jax.inference.vocabularies import read_values
from dlrm_jax.training.config_data import check_shared, for_data

SCHEMA = Schema(
    "y",
    ("viewed", "user", "item", "bought"),
    bag_lengths={"viewed": 3},
    shared={"viewed": "item", "bought": "item"},
)


def log(items: list[int], viewed: list[list[int] | None], bought: list[int | None]) -> pl.DataFrame:
    """A log of one row an item; the users are few."""
    return pl.DataFrame(
        {
            "y": [i % 2 for i in range(len(items))],
            "user": [f"u{i % 3}" for i in range(len(items))],
            "item": items,
            "viewed": pl.Series(viewed, dtype=pl.List(pl.Int32)),
            "bought": pl.Series(bought, dtype=pl.Int16),
        }
    )


def training() -> pl.DataFrame:
    """Six days of four rows, and one with values that the others lack."""
    items = [10, 10, 10, 20] * 6 + [10, 77, 20, 20]
    viewed = [[20, 30], [], None, [30, 20, 10, 99]] * 6 + [[88], [10], [30], None]
    bought = [40, None, 20, 40] * 6 + [66, 40, None, 10]
    return log(items, viewed, bought)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared")
    training().write_parquet(directory / "log.parquet")
    preprocess([directory / "log.parquet"], directory / "out", Options(SCHEMA))
    return directory / "out"


def vocabulary(directory: Path) -> dict[int, int]:
    """The ids of the items by value."""
    return dict(read_values(directory, 2).select("value", "id").drop_nulls().iter_rows())


def expected_ids(frame: pl.DataFrame, ids: dict[int, int]) -> list[list[int]]:
    found = []
    for row in frame.iter_rows(named=True):
        bag = [ids.get(x, 0) for x in (row["viewed"] or [])[:3]]
        single = [1 if row[x] is None else ids.get(row[x], 0) for x in ("item", "bought")]
        found.append([*bag, *[-1] * (3 - len(bag)), *single])
    return found


def test_one_vocabulary_of_all_columns(prepared: Path):
    names = sorted(path.name for path in (prepared / "vocabularies").iterdir())
    assert names == ["1.parquet", "2.parquet"]
    whole = pl.read_parquet(prepared / "vocabularies" / "2.parquet")
    # By frequency in all three columns, in the training days and the kept part of the bags.
    assert whole["value"].to_list() == [10, 20, 30, 40]
    assert whole["count"].to_list() == [24, 24, 12, 12]
    data = load_directory(prepared)
    assert data.columns == ("viewed", "user", "item", "bought")
    assert data.shared == {"viewed": "item", "bought": "item"}
    assert data.table_rows == (6, 5, 6, 6)
    ids = np.concatenate([np.asarray(day.ids) for split in data.splits.values()
                          for day in split.days])  # fmt: skip
    in_time = training()[[*range(24), 26, 27, 24, 25]]  # validation is the second half
    assert sorted(ids[:, [0, 1, 2, 4, 5]].tolist()) == sorted(
        expected_ids(in_time, vocabulary(prepared))
    )


def test_the_config_shares_the_table(prepared: Path):
    config = for_data(Config(), load_directory(prepared))
    assert config.shared_tables == ("viewed=item", "bought=item")
    assert config.table_of == {"viewed": "item", "user": "user", "item": "item", "bought": "item"}
    assert for_data(config, load_directory(prepared)) == config
    check_shared(config, load_directory(prepared))
    other = dataclasses.replace(config, shared_tables=("user=item",))
    with pytest.raises(UserError, match=r"^shared_tables: .* column of user=item has a vocabulary"):
        check_shared(other, load_directory(prepared))


def test_new_logs_have_the_ids_of_the_shared_vocabulary(prepared: Path, tmp_path: Path):
    new = log([30, 5, 40], [[40], [5, 10], None], [None, 20, 7])
    # As text, as floats: each column is converted to the type of the vocabulary.
    changed = new.with_columns(pl.col("item").cast(pl.String), pl.col("bought").cast(pl.Float64))
    changed.drop("y").write_parquet(tmp_path / "new.parquet")
    (found,) = encode_logs([tmp_path / "new.parquet"], prepared)
    ids = np.asarray(found.ids)[:, [0, 1, 2, 4, 5]]
    assert ids.tolist() == expected_ids(new, vocabulary(prepared))


def test_it_grows_as_one(prepared: Path, tmp_path: Path):
    for name, frame in (
        ("log", log([50, 10] * 7, [[60], None] * 7, [70, 60] * 7)),
        ("v", training()),
        ("t", training().head(9)),
    ):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    paths = [tmp_path / f"{name}.parquet" for name in ("log", "v", "t")]

    def grow(schema: Schema) -> Metadata:
        return preprocess(paths[:1], tmp_path / "out", Options(schema), paths[1:], prepared)

    with pytest.raises(UserError, match=r'share .* \{"viewed": "item", .*, the schema \{\}; share'):
        grow(dataclasses.replace(SCHEMA, shared={}))
    grown = grow(SCHEMA)
    before, after = vocabulary(prepared), vocabulary(tmp_path / "out")
    assert {x: after[x] for x in before} == before
    assert after.keys() - before.keys() == {50, 60, 70}
    assert grown.table_rows == [9, 5, 9, 9]


def test_the_report_counts_one_table(prepared: Path, tmp_path: Path):
    found = measure(load_directory(prepared), Metadata.read(prepared))
    assert [column.table for column in found.columns] == ["item", "user", "item", "item"]
    assert [column.name for column in found.tables] == ["user", "viewed, item, bought"]
    assert found.tables[1].rows == 6
    assert int(found.tables[1].occurrences.sum()) == 6 * (5 + 4 + 4)
    write_report(prepared, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "their tables with 11 rows" in text
    assert "viewed, item, bought" in text
    assert found.tables[1].mean_ids == pytest.approx(sum(x.mean_ids for x in found.columns) - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": {"viewed": "y"}}, "shared names 'y', which isn't categorical"),
        ({"shared": {"seen": "item"}}, "shared names 'seen', which isn't categorical"),
        ({"shared": {"item": "item"}}, "'item' names itself"),
        ({"shared": {"viewed": "item", "item": "user"}},
         "'viewed' names 'item', which has the vocabulary of 'user'; name a column"),
        ({"shared": ["viewed", "item"]}, "shared must be an object with names"),
        ({"shared": {"viewed": 3}}, "such as {\"viewed\": \"item\"}, got {'viewed': 3}"),
    ],
)  # fmt: skip
def test_bad_schemas(change: dict[str, Any], message: str):
    fields = {"label": "y", "categorical": ["viewed", "user", "item"], "bag_lengths": {"viewed": 3}}
    with pytest.raises(UserError, match=re.escape(message)):
        Schema.from_fields(fields | change)


def test_types_that_differ(tmp_path: Path):
    frame = training().with_columns(pl.col("bought").cast(pl.String))
    frame.write_parquet(tmp_path / "log.parquet")
    message = "column bought is String, but item, whose vocabulary it shares, is Int64"
    with pytest.raises(UserError, match=message):
        preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(SCHEMA))
    # A column without values has no type; the other file has another one.
    first = training().with_columns(pl.lit(None).alias("bought"))
    second = frame.with_columns(pl.lit(None).alias("item"), pl.lit(None).alias("viewed"))
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, each in zip(paths, (first, second), strict=True):
        each.write_parquet(path)
    message = r"column viewed is List\(Int32\) in .*a.parquet, but bought, which shares its .* is "
    with pytest.raises(UserError, match=message + r"String in .*b.parquet"):
        preprocess(paths, tmp_path / "out", Options(SCHEMA))


def test_data_without_it_are_described_as_before():
    assert "shared" not in Options(dataclasses.replace(SCHEMA, shared={})).to_json()["schema"]
    assert Options.from_json(Options(SCHEMA).to_json()).schema == SCHEMA
    with pytest.raises(UserError, match="the schema has shared vocabularies"):
        Options(dataclasses.replace(SCHEMA, bag_lengths={}), multi_hot_sizes=(1, 1, 2, 1))

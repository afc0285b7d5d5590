"""What data that grow from others inherit, and what differs between them."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import polars as pl
import pytest
from in_process import imported

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.main import as_flags
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

SCHEMA = {"label": "clicked", "categorical": ["shop"], "dense": ["price"]}


def day(directory: Path, name: str, shops: list[str]) -> Path:
    frame = pl.DataFrame({"clicked": [0, 1] * (len(shops) // 2), "shop": shops})
    path = directory / f"{name}.parquet"
    frame.with_columns(price=pl.lit(1.5)).write_parquet(path)
    return path


def command(*arguments: object) -> None:
    with imported("dlrm_jax.cli.preprocess") as program:
        flags = ["--split=none", *map(str, arguments)]
        cli_flags.parse(["preprocess", *as_flags("preprocess", flags)])
        program.main()


@pytest.fixture
def before(tmp_path: Path) -> list[str]:
    """Flags of a day that grows from one with limits, in which a and b are frequent."""
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    schema = f"--schema={tmp_path / 'schema.json'}"
    log = day(tmp_path, "0", ["a", "a", "b", "b", "c", "d"])
    command(f"--input={log}", schema, f"--output={tmp_path / '0'}", "--min_count=2", "--max_rows=5")
    assert Metadata.read(tmp_path / "0").table_rows == [4]
    new = day(tmp_path, "1", ["e", "f", "f", "g", "g", "h", "h", "i", "i", "i"])
    return [f"--input={new}", schema, f"--grow={tmp_path / '0'}"]


def rows_of(directory: Path) -> dict[str, int]:
    frame = pl.read_parquet(directory / "vocabularies" / "0.parquet")
    return dict(frame.select("value", "id").sort("id").rows())


def test_min_count_stays(before: list[str], tmp_path: Path, capsys):
    """The rare value has no row, as none had."""
    capsys.readouterr()
    command(*before, f"--output={tmp_path / '1'}")
    assert f"as {tmp_path / '0'} has: --min_count=2\n" in capsys.readouterr().out
    assert set(rows_of(tmp_path / "1")) == {"a", "b", "f", "g", "h", "i"}
    command(*before, f"--output={tmp_path / '1'}", "--min_count=2")  # the same


def test_full_tables_take_new_values(before: list[str], tmp_path: Path, caplog):
    """Without ``--max_rows``, on the next day and on the one after it."""
    with caplog.at_level(logging.WARNING):
        command(*before, f"--output={tmp_path / '1'}")
    assert "grow: max_rows is 0 here, and 5 in the data that grow" in caplog.text
    found = rows_of(tmp_path / "1")
    assert (found.pop("a"), found.pop("b")) == (2, 3)
    assert sorted(found.values()) == [4, 5, 6, 7]
    log = day(tmp_path, "2", ["j", "j"])
    command(f"--input={log}", before[1], f"--grow={tmp_path / '1'}", f"--output={tmp_path / '2'}")
    assert rows_of(tmp_path / "2")["j"] == 8


def test_limits_that_are_given_count(before: list[str], tmp_path: Path, capsys, caplog):
    capsys.readouterr()
    with caplog.at_level(logging.WARNING):
        command(*before, f"--output={tmp_path / '1'}", "--min_count=1", "--max_rows=5")
    assert " has: " not in capsys.readouterr().out
    found = rows_of(tmp_path / "1")
    assert set(found) == {"a", "b", "e", "f", "g", "h", "i"}
    assert (found["a"], found["b"], max(found.values())) == (2, 3, 4)
    assert "grow: min_count is 1 here, and 2 in the data that grow" in caplog.text
    assert "grow: max_rows" not in caplog.text
    grow = f"--grow={tmp_path / '1'}"
    with pytest.raises(UserError, match="has 5 rows already, more than max_rows = 4"):
        command(*before[:2], grow, f"--output={tmp_path / '2'}", "--max_rows=4")


def test_columns_that_mean_something_else_are_named(tmp_path: Path, caplog):
    log = day(tmp_path, "0", ["a", "b"] * 5)
    schema = Schema("clicked", ("shop",), ("price",))
    preprocess([log], tmp_path / "0", Options(schema, split="none"))
    raw = dataclasses.replace(schema, dense_transform={"price": "none"})
    preprocess([log], tmp_path / "1", Options(raw, split="none"), grow=tmp_path / "0")
    expected = 'grow: dense_transform is {"price": "none"} here, and "log" in the data that grow'
    assert [x.getMessage() for x in caplog.records if "grow" in x.getMessage()] == [expected]

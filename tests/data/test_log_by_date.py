"""One log, cut into a file for each date."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from full_disk import largest_file
from polars.testing import assert_frame_equal

from dlrm_jax.data.preprocessing import log_by_date
from dlrm_jax.data.preprocessing.log_by_date import by_date
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

SCHEMA = Schema("click", ("item",), timestamp="time")
START = datetime.datetime(2026, 3, 1)


def write(path: Path, hours: list[int | None]) -> Path:
    times = [None if x is None else START + datetime.timedelta(hours=x) for x in hours]
    items = [f"i{number}" for number in range(len(hours))]
    frame = pl.DataFrame({"time": times, "item": items, "click": 1, "request": items})
    frame.write_parquet(path)
    return path


@pytest.mark.parametrize("rows", [2, 1 << 18])
def test_each_date_has_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int):
    monkeypatch.setattr("dlrm_jax.data.preprocessing.log_by_date.CHUNK_ROWS", rows)
    log = write(tmp_path / "log.parquet", [0, 5, 5, 23, 24, 73, 74])
    files = by_date(log, SCHEMA, tmp_path / "logs")
    assert [path.name for path in files] == [
        "2026-03-01.parquet", "2026-03-02.parquet", "2026-03-04.parquet"
    ]  # fmt: skip
    parts = [pl.read_parquet(path) for path in files]
    assert [len(part) for part in parts] == [4, 1, 2]
    assert_frame_equal(pl.concat(parts), pl.read_parquet(log))
    stats = [path.stat().st_mtime_ns for path in files]
    assert by_date(log, SCHEMA, tmp_path / "logs") == files
    assert [path.stat().st_mtime_ns for path in files] == stats, "nothing is done again"
    other = write(tmp_path / "other.parquet", [0, 30])
    with pytest.raises(UserError, match=r"logs is of the log log.parquet .* got other.parquet"):
        by_date(other, SCHEMA, tmp_path / "logs")


def test_a_full_disk_is_not_the_log_s_fault(tmp_path: Path):
    log = write(tmp_path / "log.parquet", list(range(4000)))
    with largest_file(500), pytest.raises(UserError, match=r"cannot write .*logs: .* too large"):
        by_date(log, SCHEMA, tmp_path / "logs")
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_only_what_was_cut_from_the_same_log_is_used(tmp_path: Path):
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            by_date(log, SCHEMA, tmp_path / "logs")

    log, note = write(tmp_path / "log.parquet", [0, 30]), tmp_path / "logs" / "log.json"
    files = by_date(log, SCHEMA, tmp_path / "logs")
    write(tmp_path / "logs" / "2026-03-01-mine.parquet", [0])
    assert by_date(log, SCHEMA, tmp_path / "logs") == files, "a stray file is no day"

    content, text = log.read_bytes(), note.read_text()
    log.write_bytes(content.replace(b"i1", b"x1"))  # as large as before
    refused("is of the log log.parquet .* with other content; give another workdir, or a file for")
    write(log, [0, 30, 60])
    refused("is of the log log.parquet .* got log.parquet .* give another workdir, or a file for")
    log.write_bytes(content)
    for damaged in ("{", "[]", '{"log": 1}', text.replace("2026-03-01.parquet", "../log.parquet")):
        note.write_text(damaged)
        refused("log.json is damaged, or isn't of days that this program cut: .*another workdir")
    note.write_text(text)
    files[0].unlink()
    refused("logs lacks 2026-03-01.parquet; put it back, or delete .*logs: the log is cut again")


def test_what_is_refused(tmp_path: Path):
    def refused(log: Path, message: str, schema: Schema = SCHEMA) -> None:
        with pytest.raises(UserError, match=message):
            by_date(log, schema, tmp_path / "logs")
        assert not (tmp_path / "logs").exists()

    back = write(tmp_path / "back.parquet", [0, 30, 29, 23])
    refused(back, "back.parquet, row 4: its date 2026-03-01 is before .* 2026-03-02; sort the log")
    none = write(tmp_path / "none.parquet", [0, None])
    refused(none, "none.parquet, row 2, column time: expected a date.* got None")
    refused(back, "expected a Parquet file with a timestamp .* file for each day",
            Schema("click", ("item",)))  # fmt: skip
    (tmp_path / "log.csv").write_text("time,item,click\n2026-03-01,1,0\n")
    refused(tmp_path / "log.csv", "expected a Parquet file with a timestamp")


def test_a_directory_that_comes_up_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_json(*arguments: Any) -> None:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "notes").write_text("mine")

    log = write(tmp_path / "log.parquet", [0, 30])
    monkeypatch.setattr(log_by_date, "write_json", write_json)
    with pytest.raises(UserError, match="logs exists; remove it"):
        by_date(log, SCHEMA, tmp_path / "logs")
    assert (tmp_path / "logs" / "notes").read_text() == "mine"

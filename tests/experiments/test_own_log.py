"""Logs of interactions of one's own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import polars as pl
import pytest

from dlrm_jax.errors import UserError
from experiments.next_item.own_log import read_log

COLUMNS = ("who", "what", "when")


def log(directory: Path, *lines: str, header: str = "when,who,what,more") -> Path:
    path = directory / "log.csv"
    path.write_text("\n".join([header, *lines, ""]))
    return path


def test_types_of_a_csv_file_are_those_of_all_its_lines(tmp_path: Path):
    lines = [f"{x},{x % 7},{x}," for x in range(300)]
    found = read_log(log(tmp_path, *lines), COLUMNS)
    assert found.schema == {"when": pl.Int64, "who": pl.Int64, "what": pl.Int64}
    found = read_log(log(tmp_path, *lines, '7.25,007,"a,b",'), COLUMNS)
    assert found.schema == {"when": pl.Float64, "who": pl.String, "what": pl.String}
    assert found.row(-1) == (7.25, "007", "a,b")
    dates = log(tmp_path, "2024-05-01 10:00:00,1,NA,", "2024/05/01 10:00:01,1,3,")
    seconds = read_log(dates, COLUMNS)["when"].dt.epoch("s").to_list()
    assert seconds == [1714557600, 1714557601]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["1,2,3,"] * 300 + ["1,2,3,4,5"], "log.csv, line 302: expected 4 fields as in the header"),
        (["1,2,3,", "oops,2,3,"], "column when: expected seconds .*, got 'oops' in row 2 below"),
        (["2024-05-01,2,3,"] * 2 + ["5,2,3,"], "when: .*, got '5' in row 3 below the header"),
        (["1,2,3,", '1,2,"3,'], "log.csv, line 3: a quote begins in this record"),
        (["20240501,2,3,", "20240502,2,3,"], "row 1, column when: expected a date"),
        ([], "expected a row for each interaction, got none"),
    ],
)
def test_malformed_lines(tmp_path: Path, lines: list[str], text: str):
    with pytest.raises(UserError, match=text):
        read_log(log(tmp_path, *lines), COLUMNS)


def test_columns_that_are_missing_are_named_by_who_reads_them(tmp_path: Path):
    found = read_log(log(tmp_path, "1,2", header="when,who"), COLUMNS)
    assert found.columns == ["when", "who"]


def test_a_damaged_parquet_file(tmp_path: Path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"who": range(9), "what": range(9), "when": range(9)}).write_parquet(path)
    whole = path.read_bytes()
    read_at = set()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with contextlib.suppress(UserError):  # some bytes are values; nothing else is raised
            read_log(path, COLUMNS)
            read_at.add(place)
    assert len(read_at) < len(range(0, len(whole), 37))
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"cannot read the Parquet file .*is it complete"):
        read_log(path, COLUMNS)

"""Results of matches with peers are kept by processor, and the page shows what the files say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import polars as pl
import pytest

from dlrm_jax.errors import UserError
from experiments.benchmarks.peers import results
from experiments.benchmarks.peers.match import Outcome, Round, Side
from experiments.benchmarks.peers.report import Entry

TOP = Path(__file__).parents[2]


def report(peer: str, ours: float, theirs: float, batch: int = 128) -> dict:
    side = Side((0.5,), 1, 1)
    rounds = tuple(Round(ours * x, theirs * x, 0.0, None) for x in (1.0, 1.01, 0.99))
    outcome = Outcome(side, side, rounds, 3)
    entry = Entry("small", 1, 1, batch, "train", "sgd", "float32", peer, {}, {}, outcome)
    return {"matches": [entry.as_json()]}


def add(path: Path, *reports: dict) -> None:
    for each in reports:
        results.add(path, results.matches_of(each))


def test_a_later_match_of_a_kind_takes_the_place_of_the_earlier_one(tmp_path: Path):
    path = tmp_path / "one.csv"
    add(path, report("a", 1, 3), report("b", 1, 2), report("a", 1, 4, batch=64), report("a", 2, 5))
    found = results.read(path)
    assert found.select("batch", "peer", "ratio", "ours_ms").rows() == [
        (64, "a", 4, 1000),
        (128, "a", 2.5, 2000),
        (128, "b", 2, 1000),
    ]
    assert found["unsteady"].to_list() == [False] * 3


def test_a_claim_is_the_least_ratio_against_the_fastest_peer_of_any_processor(tmp_path: Path):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    add(one, report("a", 1, 3), report("b", 1, 2))
    add(other, report("a", 1, 1.5), report("a", 1, 9, batch=64))
    assert results.side_by_side([one, other])[1:] == [
        ["float32", "small", "64", "train, sgd", "", "9.00 (a)"],
        ["float32", "small", "128", "train, sgd", "2.00 (b)", "1.50 (a)"],
    ]
    assert results.least([one, other])[1:] == [
        ["float32", "train", "1.50 (a)", "small, 128, train, sgd", "other"]
    ]


def test_an_unsteady_ratio_is_marked_and_an_old_one_has_no_quartiles(tmp_path: Path):
    path = tmp_path / "one.csv"
    add(path, report("a", 1, 3))
    changed = results.read(path).with_columns(
        unsteady=pl.lit(True), lower=pl.lit(None, pl.Float64), upper=pl.lit(None, pl.Float64)
    )
    path.write_text(changed.write_csv(), encoding="utf-8")
    assert results.side_by_side([path])[1][-1] == "3.00\\* (a)"


def test_a_file_with_other_columns_is_refused(tmp_path: Path):
    path = tmp_path / "one.csv"
    path.write_text("preset,batch\nsmall,128\n", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"{path}: expected the columns preset, batch")):
        results.read(path)
    with pytest.raises(UserError, match="found none; see --add"):
        results.strongest([])


@pytest.mark.parametrize(
    ("old", "new", "got"),
    [
        ("3.0,3.0,3.0,false", ",,,false", "row 1, small, 128, .*, None"),
        ("3.0,3.0,3.0,false", "NaN,,,false", "row 1, .*, nan"),
        ("3.0,3.0,3.0,false", "inf,,,false", "row 1, .*, inf"),
        ("3.0,3.0,3.0,false", "-3.0,,,false", "row 1, .*, -3.0"),
        ("3.0,3.0,3.0,false", "3.0,3.0,0.0,false", "row 1, .*, 0.0, False"),
        (",3.0,3.0,3.0,false\n", "", "row 1, .*, None"),  # cut within a row
        (",false\n", ",", "row 1, .*, None"),
        ("small,128,", ",128,", "row 1, None, 128"),
        ('small,128,"train, sgd",float32,a,1000.0,3000.0,3.0,3.0,3.0,false\n', "", "no rows"),
    ],
)
def test_a_match_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, got: str):
    path = tmp_path / "one.csv"
    steady = report("a", 1, 3)
    steady["matches"][0]["ratio_quartiles"] = [3.0, 3.0]
    add(path, steady)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=f"one.csv: expected matches with .* got {got}"):
        results.least([path])


def test_columns_in_another_order_are_read_by_name(tmp_path: Path):
    path = tmp_path / "one.csv"
    add(path, report("a", 1, 3))
    whole = results.read(path)
    whole.select(whole.columns[::-1]).write_csv(path)
    assert results.read(path).equals(whole)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "5", '{"matches": [{}]}', '{"matches": 1}', '{"matches": []}', "\udcff"],
)
def test_a_run_of_another_kind_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "peers.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=r"peers\.json: expected"):
        results.of_run(path)


@pytest.mark.parametrize(
    "change",
    [{"ratio": None}, {"ratio": math.nan}, {"ratio": "three"}, {"our_seconds": "1"}, {"peer": None},
     {"ratio_quartiles": []}, {"batch_size": 2**70}, {"batch_size": 0}, {"is_unsteady": None}],
    ids=str,
)  # fmt: skip
def test_a_match_of_a_run_that_cannot_be_is_refused(tmp_path: Path, change: dict):
    path = tmp_path / "peers.json"
    right = report("a", 1, 3)
    path.write_text(json.dumps(right), encoding="utf-8")
    assert len(results.of_run(path)) == 1
    right["matches"][0] |= change
    path.write_text(json.dumps(right), encoding="utf-8")
    with pytest.raises(UserError, match=r"peers\.json: expected"):
        results.of_run(path)


def test_the_page_shows_the_tables_of_the_files():
    files = sorted((TOP / results.DIRECTORY).glob("*.csv"))
    page = (TOP / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for lines in (results.side_by_side(files), results.least(files)):
        assert results.markdown(lines) in page

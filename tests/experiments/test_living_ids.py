"""The study of ids that come and go: vocabularies against loops, and all of it in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from main_job import run

from dlrm_jax.data.generated.click_log import SCHEMA, ClickLog
from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.data.preprocessing.raw_ids import RawIds, ids_of
from dlrm_jax.data.preprocessing.schema import Schema
from experiments.living_ids.study import Vocabularies, born, entropies


def test_the_vocabulary_of_a_day_has_the_ids_of_earlier_ones():
    schema = Schema("y", ("user", "item", "seen"), (), {"seen": 2}, shared={"seen": "item"})
    days = [
        pl.DataFrame({"item": ["a", "c"]}),
        pl.DataFrame({"item": ["b", "a"]}),
        pl.DataFrame({"item": ["b", "d"]}),
    ]
    a, b, c, d = (int(x) for x in ids_of(pl.Series(["a", "b", "c", "d"])))
    hashed = HashedRows(schema, (10, 10, 10))
    own = {"item": born(days, "item")}
    each_day = Vocabularies(hashed, schema, own, lambda day: max(day - 1, 0), 2)
    raw = RawIds(
        np.array([[5, a, b, c], [5, d, a, 0]], np.uint64),
        np.array([[True] * 4, [True, True, True, False]]),
    )
    found = [each_day(raw) for _ in days]
    first = [1 + sorted([a, c]).index(x) for x in (a, c)]
    for rows in found:
        np.testing.assert_array_equal(rows[:, 0], hashed(raw)[:, 0])
    before = [[first[0], 0, first[1]], [0, first[0], -1]]
    np.testing.assert_array_equal(found[0][:, 1:], before)
    np.testing.assert_array_equal(found[1][:, 1:], before)
    np.testing.assert_array_equal(found[2][:, 1:], [[first[0], 3, first[1]], [0, first[0], -1]])


def test_entropy_is_that_of_the_definition():
    days = [pl.DataFrame({"clicked": [True, False, False, False]})]
    p = np.array([0.5, 0.2, 0.3, 0.1])
    loss = -(np.log(0.5) + np.log(0.8) + np.log(0.7) + np.log(0.9)) / 4
    base = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert entropies(days, [p]) == pytest.approx(loss / base)


@pytest.mark.thorough
def test_the_study_prints_and_writes_each_day(tmp_path: Path):
    flags = ("--days=3", "--examples=2000", "--users=300", "--items=100", "--batch_size=200")
    rows = ("--user_rows=250", "--item_rows=90", f"--workdir={tmp_path}")
    result = run(*flags, *rows, program=("-m", "experiments.living_ids"))
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads((tmp_path / "living_ids.json").read_text())
    entropy = found["normalized_entropy"]
    assert [len(entropy[way]) for way in entropy] == [3] * 5
    log = ClickLog(300, 100, 0.05, 3, 0)
    days = [each.frame for each in log.each_day(2000)]
    best = entropies(days, [day["click_probability"].to_numpy() for day in days])
    assert found["best"] == pytest.approx(best.tolist())
    for of_days in entropy.values():
        assert of_days[1] < of_days[0]  # it learns
        assert min(np.array(of_days) - best) > 0
    table = [line.split() for line in result.stdout.splitlines()]
    (dynamic,) = [line for line in table if line[:1] == ["dynamic"]]
    assert dynamic[1:3] == ["250", "90"]
    assert float(dynamic[-2]) == pytest.approx(np.mean(entropy["dynamic"][1:]), abs=1e-4)
    assert Schema.from_fields(SCHEMA).owners[-1] == 1


def test_a_study_starts_in_an_empty_directory_with_days_of_some_batches(tmp_path: Path):
    program = ("-m", "experiments.living_ids")
    (tmp_path / "hashed").mkdir()
    result = run(f"--workdir={tmp_path}", program=program)
    assert result.returncode == 2
    assert "--workdir: expected a new or empty directory" in result.stderr
    assert "Traceback" not in result.stderr
    new = tmp_path / "new"
    result = run(f"--workdir={new}", "--examples=2499", program=program)
    assert result.returncode == 2
    assert "--examples: expected at least 5 batches of --batch_size=500" in result.stderr
    assert not new.exists()

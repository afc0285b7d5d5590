"""The loop over days: train on a day, test on the next one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from day_logs import SCHEMA, write_day

from dlrm_jax.cli.days_page import printed, write_page
from dlrm_jax.config import Config
from dlrm_jax.daily import Daily, DayLog, Entry
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options as Preparation
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.measures import measures_of
from dlrm_jax.training.metrics import binary_metrics

CONFIG = Config(
    model="logistic_regression",
    optimizer="adagrad",
    learning_rate=0.3,
    batch_size=32,
    evaluation_batch_size=64,
    eval_every=0,
    metrics=("gauc:user",),
)


def daily(logs: list[DayLog], workdir: Path, config: Config = CONFIG) -> Daily:
    return Daily(logs, Preparation(SCHEMA), config, make_mesh("1x1"), workdir)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DayLog], list[Entry]]:
    """A loop that ended after the first day and went on, with a day more."""
    directory = tmp_path_factory.mktemp("loop")
    logs = [DayLog(f"day_{day}", write_day(directory, day)) for day in range(3)]
    workdir = directory / "w"
    workdir.mkdir()
    (entry,) = list(daily(logs[:2], workdir)())[-1]
    entries = list(daily(logs, workdir)())
    assert entries[0][0] == json.loads(json.dumps(entry)), "it isn't done again"
    return workdir, logs, entries[-1]


def test_each_day_is_tested_on_the_next_one(done: tuple[Path, list[DayLog], list[Entry]]):
    workdir, logs, (first, second) = done
    assert first["updated"] == first["not_updated"]
    assert (first["new_ids"], first["day_before"]) == (None, None)
    assert (second["day"], second["tested_on"], second["rows"]) == ("day_1", "day_2", 128)
    assert (first["steps"], second["steps"]) == (4, 8)
    labels = pl.read_parquet(logs[2].path)["click"].to_numpy()
    data = load_directory(workdir / "data" / "001-day_1")  # the groups of all models
    for name, run, noted in (
        ("updated", "001-day_1", "updated"),
        ("first", "000-day_0", "not_updated"),
        ("before", "000-day_0", "day_before"),
    ):
        model = Predictor.load(workdir / "runs" / run)
        predicted = model.predict(logs[2].path)
        found = binary_metrics(np.log(predicted / (1 - predicted)), labels)
        for metric in ("auc", "log_loss", "calibration"):
            assert second[noted][metric] == pytest.approx(found[metric], rel=1e-5), name
        found = measures_of(CONFIG, data)(np.log(predicted / (1 - predicted)), data.test)
        assert second[noted]["gauc:user"] == pytest.approx(found["gauc:user"], rel=1e-5), name
    unknown = second["unknown_ids"]
    # Users 0 to 8 are known on the first day, 3 to 11 come on the second, 6 to 14 on the third.
    assert 0.05 < unknown["updated"] < unknown["not_updated"] < 0.4
    days = [pl.read_parquet(log.path) for log in logs]
    known = [set(days[0][name]) for name in ("user", "item")]
    known[1] |= set(days[0]["viewed"])
    new = sum(
        (~days[1][x].is_in(list(known[x != "user"]))).sum() for x in ("user", "item", "viewed")
    )
    assert second["new_ids"] == new / (3 * len(days[1]))


@pytest.mark.thorough
def test_two_labels(tmp_path: Path):
    """Both models are measured alike, label by label."""
    logs = [DayLog(f"day_{day}", write_day(tmp_path, day)) for day in range(3)]
    schema = dataclasses.replace(SCHEMA, label=("click", "buy"))
    config = dataclasses.replace(CONFIG, model="shared_bottom", learning_rate=1e-30)
    loop = Daily(logs, Preparation(schema), config, make_mesh("1x1"), tmp_path)
    (_, second) = list(loop())[-1]
    assert "buy/auc" in second["updated"]
    assert second["updated"].keys() == second["not_updated"].keys()
    # Nothing is learned, but the updated model has rows of its own for new values.
    for name in ("log_loss", "buy/log_loss"):
        assert second["updated"][name] == pytest.approx(second["not_updated"][name], rel=0.02)


def test_what_is_told(done: tuple[Path, list[DayLog], list[Entry]], tmp_path: Path):
    _, _, days = done
    text = printed(days)
    assert "the updated model was better than the first day's on " in text
    assert "of 1 days by log loss (mean 0." in text
    write_page(days, CONFIG, tmp_path)
    page = (tmp_path / "days.html").read_text()
    assert "day_2" in page
    assert "unknown ids, first day&#39;s" in page
    assert (tmp_path / "days.svg").stat().st_size > 1000


def test_a_damaged_journal(done: tuple[Path, list[DayLog], list[Entry]], tmp_path: Path):
    workdir, logs, _ = done
    journal = json.loads((workdir / "days.json").read_text())
    journal["days"][0]["updated"]["auc"] = "x"
    others = '{"config": {}, "preparation": {}, "logs": [], "days": []}'
    for content in ("{", "[]", "{}", "7", others, '{"mine": 1}', json.dumps(journal)):
        (tmp_path / "days.json").write_text(content)
        expected = r"days.json is damaged, or isn't of a loop over days: .*; give another workdir"
        with pytest.raises(UserError, match=expected):
            list(daily(logs, tmp_path)())


def test_a_day_with_too_few_rows(
    done: tuple[Path, list[DayLog], list[Entry]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is named before a day trains. The last day, which is for test, needs one row."""
    workdir, logs, _ = done
    short = DayLog("short", write_day(tmp_path, 9, 31))
    empty = DayLog("empty", write_day(tmp_path, 8, 0))
    text = DayLog("text", tmp_path / "text.csv")
    pl.read_parquet(short.path).write_csv(text.path)
    refused = "has 31 rows, and a batch 32: .*; join it with the day before it or after it in one"
    for given, message in (
        ([*logs[:2], short, logs[2]], f"day short {refused}"),
        ([text, *logs], f"day text {refused}"),
        ([*logs, empty], "day empty has no rows: "),
        ([*logs, empty, logs[0]], "day empty has 0 rows, and a batch 32: "),
    ):
        with pytest.raises(UserError, match=message):
            next(daily(given, tmp_path)())
    said: list[str] = []
    next(dataclasses.replace(daily([*logs, short], workdir), say=said.append)())
    assert said[0].startswith("day short has 31 rows, and a batch 32: the loop can't go on after")
    said.clear()
    wide = dataclasses.replace(daily(logs, workdir), say=said.append)
    monkeypatch.setattr("dlrm_jax.daily.count_rows", lambda *_: 0)
    assert len(list(wide())) == 1, "days that are done aren't counted"
    assert said == []


def test_other_logs_and_settings_are_refused(done: tuple[Path, list[DayLog], list[Entry]]):
    workdir, logs, _ = done
    for changed, message in (
        (daily(logs[:1], workdir), "expected logs of two days or more"),
        (daily(logs[:2], workdir), "has used 3 logs, got 2; give them all"),
        (daily([logs[1], logs[0], logs[2]], workdir), "has used the log day_0 of .* got day_1"),
        (
            daily(logs, workdir, dataclasses.replace(CONFIG, learning_rate=0.1)),
            "began with learning_rate 0.3, got 0.1; give the same",
        ),
    ):
        with pytest.raises(UserError, match=message):
            list(changed())

"""The page that describes a run, and the numbers beside it."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from page_reader import read

import dlrm_jax
from dlrm_jax.cli import run_sections
from dlrm_jax.cli.page import Page
from dlrm_jax.cli.run_files import read_lines
from dlrm_jax.cli.run_page import run_page
from dlrm_jax.cli.run_report import write_run_report
from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.inference.permutation import importances
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.scored_rows import score
from dlrm_jax.inference.slices import by_day
from dlrm_jax.job import FittedModel
from dlrm_jax.mesh import make_mesh

SHOP, VIEWED, PRICE = "<script>shop", "viewed $x^{", "price & <b>"
VALUES = ["<script>alert(1)</script>", "b", "c"]
ROWS, DAYS = 700, 7
CONFIG = Config(
    embedding_dim=4, bottom_mlp=(4,), top_mlp=(4, 1), batch_size=64, evaluation_batch_size=64,
    epochs=8, eval_every=12, log_every=1, learning_rate=0.1, plateau_factor=0.5, plateau_patience=1,
)  # fmt: skip


class Run(NamedTuple):
    data: Path
    workdir: Path
    model: FittedModel
    numbers: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose label depends on the shop and on nothing else, and its report."""
    directory = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    shops = rng.integers(0, 3, ROWS)
    first = datetime.datetime(2026, 1, 30)
    log = pl.DataFrame(
        {
            "label": (rng.random(ROWS) < np.array([0.9, 0.3, 0.1])[shops]).astype(int),
            SHOP: [VALUES[i] for i in shops],
            VIEWED: [rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in range(ROWS)],
            PRICE: [None if i < 7 else x for i, x in enumerate(rng.integers(1, 100, ROWS))],
            "time": [first + datetime.timedelta(days=i * DAYS / ROWS) for i in range(ROWS)],
        }
    )
    log.write_parquet(directory / "log.parquet")
    schema = Schema("label", (SHOP, VIEWED), (PRICE,), {VIEWED: 3}, timestamp="time")
    options = Options(schema, split="time:1d,2d")
    preprocess([directory / "log.parquet"], directory / "data", options)
    workdir = directory / "<b>run"
    model = dlrm_jax.fit(CONFIG, directory / "data", workdir=workdir)
    write(workdir, directory / "data")
    numbers = json.loads((workdir / "report.json").read_text())
    return Run(directory / "data", workdir, model, numbers)


def write(workdir: Path, data: Path | None, **changes: Any) -> Path:
    options: dict[str, Any] = {"batch_size": 64, "model": None, "most": 10_000, "permutations": 2}
    return write_run_report(workdir, data, make_mesh("1x1"), **options | changes)


def test_the_page_shows_everything_as_text(run: Run):
    page, pictures = read(run.workdir / "report.html")
    assert not {"script", "b"} & set(page.tags)
    assert "Run report: <b>run" in page.text
    curves, calibration, days, important, slices = pictures
    assert {"training loss, batches", "cut of the learning rate", "best", "auc"} <= set(curves)
    assert "mean prediction" in calibration
    assert {"2026-01-30", "2026-02-05", "train", "validation", "test"} <= set(days)
    assert {SHOP, VIEWED, PRICE} <= set(important)
    assert f"no slice of their own. {PRICE}: 1.0% of all rows, which count as 0." in page.text
    assert any(text.startswith(f"{SHOP} = ") for text in slices)
    rows = {row[0]: row for row in page.rows}
    assert rows["learning_rate"] == ["learning_rate", "0.1", "0.03"]
    assert rows["table_rows"][1] == "5, 11"
    assert rows["checkpoint"][1].startswith(str(run.workdir))
    assert "jax " in rows["versions"][1]


def test_predictions_of_a_ranking_loss_are_no_probabilities(run: Run, tmp_path: Path):
    assert run.numbers["data"]["are_probabilities"]
    data = run.numbers["data"] | {"are_probabilities": False}
    run_page(run.numbers | {"data": data}).write(tmp_path / "page.html")
    page, pictures = read(tmp_path / "page.html")
    assert "there is no calibration" in page.text
    assert len(pictures) == 2  # learning curves and importances
    headers = [row for row in page.rows if row[:2] in (["day", "split"], ["feature", "value"])]
    assert [row[2:] for row in headers] == [["rows", "label 1", "AUC"]] * 2


def test_a_run_whose_metric_is_not_finite_has_no_best_step(run: Run, tmp_path: Path):
    """Of examples of one class, say, which have no AUC: the latest is read, and isn't the best."""
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    for path in (workdir / "checkpoints").glob("*/metadata.json"):
        metadata = json.loads(path.read_text())
        if metadata["validation"]:
            metadata["validation"]["auc"] = None
            path.write_text(json.dumps(metadata))
    write(workdir, None)
    numbers = json.loads((workdir / "report.json").read_text())
    assert numbers["best_step"] is None
    assert numbers["why_this_step"] == "the latest, as none was validated by auc"
    assert numbers["step"] == run.model.summary["steps"]


def test_the_numbers_are_those_of_the_run(run: Run):
    numbers, summary = run.numbers, run.model.summary
    assert numbers["summary"] == json.loads((run.workdir / "summary.json").read_text())
    assert numbers["step"] == numbers["best_step"] == summary["best_step"]
    assert [x for x in numbers["record"] if x["split"] == "learning_rate"]
    data = numbers["data"]
    for split in ("validation", "test"):
        for metric in ("auc", "log_loss", "calibration"):
            found = data["predicted"][split][metric]
            assert found == pytest.approx(summary[split][metric], abs=1e-5)
    assert data["held_out"] == "test"
    by_day = [(x["day"], x["split"], x["examples"]) for x in data["days"]]
    assert by_day[0] == ("2026-01-30", "train", 100)
    assert by_day[-1] == ("2026-02-05", "test", 100)
    # Two days of test: they are those of the split, one after the other.
    labels = run.model.data.test.labels
    assert data["days"][-2]["label_rate"] == pytest.approx(labels[:100].mean())
    assert data["days"][-1]["label_rate"] == pytest.approx(labels[100:].mean())


def test_slices_have_the_values_of_the_log(run: Run):
    slices = {(x["feature"], x["value"]): x for x in run.numbers["data"]["slices"]}
    assert {value for feature, value in slices if feature == SHOP} == set(VALUES)
    test = run.model.data.test
    # The first value is the one with the highest label rate.
    best = max(VALUES, key=lambda value: slices[SHOP, value]["label_rate"])
    assert best == VALUES[0]
    assert sum(slices[SHOP, value]["examples"] for value in VALUES) == len(test)
    ranges = [value for feature, value in slices if feature == PRICE]
    assert len(ranges) == 4
    assert ranges[0].startswith("1 to ")  # as in the log, not its logarithm
    assert ranges[-1].endswith(" to 99")


def test_the_feature_that_decides_is_the_most_important_one(run: Run):
    found = run.numbers["data"]["importances"]
    assert found["features"][0]["feature"] == SHOP
    assert found["features"][0]["auc_loss"] > 0.1
    assert all(abs(x["auc_loss"]) < 0.05 for x in found["features"][1:])
    assert all(len(x["auc_losses"]) == 2 for x in found["features"])


def test_importances_repeat_and_compile_nothing_anew(run: Run):
    predictor, names = run.model.predictor, ((SHOP, VIEWED), (PRICE,))
    rows = score(predictor, "test", run.model.data.test, [5, 6], 150)
    before = np.array(rows.examples.ids), np.array(rows.examples.dense)
    compiled = predictor.compiled._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    first, again = (importances(predictor, rows, *names, 1, seed=3) for _ in range(2))
    assert first == again
    assert first != importances(predictor, rows, *names, 1, seed=4)
    assert predictor.compiled._cache_size() == compiled  # pyright: ignore[reportFunctionMemberAccess]
    np.testing.assert_array_equal(before[0], rows.examples.ids)
    np.testing.assert_array_equal(before[1], rows.examples.dense)
    constant = rows.predicted(predictor, dense=np.ones_like(rows.examples.dense))
    (price,) = (x for x in importances(predictor, constant, *names, 1, 0) if x.feature == PRICE)
    assert price.auc_loss == price.log_loss_gain == 0


def test_rows_of_tables(run: Run):
    predictor, numbers = run.model.predictor, run.numbers
    arrays = predictor.learner.collection.to_arrays(predictor.state.embedding)
    tables = {table.name: np.asarray(found["table"]) for table, found in arrays}
    ids = np.concatenate([np.asarray(day.ids) for day in run.model.data.train.days])
    for found, columns in zip(numbers["tables"], (slice(0, 1), slice(1, 4)), strict=True):
        norms = np.linalg.norm(tables[found["table"]], axis=1)
        assert found["norms"][0] == pytest.approx(norms.min(), rel=1e-5)
        assert found["norms"][3] == pytest.approx(norms.max(), rel=1e-5)
        reads = np.bincount(ids[:, columns][ids[:, columns] >= 0], minlength=len(norms))
        assert found["unread"] == np.sum(reads == 0)
        assert [x["reads"] for x in found["hot"]] == sorted(reads[reads > 0])[:-6:-1]
        hottest = found["hot"][0]
        assert hottest["norm"] == pytest.approx(norms[hottest["row"]], rel=1e-5)
        assert hottest["share"] == pytest.approx(reads.max() / reads.sum())
        assert found["placement"] == "table_wise"
    assert {x["value"] for x in numbers["tables"][0]["hot"]} == set(VALUES)


def test_what_needs_the_data_is_left_out_without_them(run: Run, tmp_path: Path):
    """Here the run goes on, too: it has no summary."""
    workdir = shutil.copytree(run.workdir, tmp_path / "copy")
    (workdir / "summary.json").unlink()
    page, pictures = read(write(workdir, None))
    assert len(pictures) == 1
    assert "name the data that the run was trained on as --data" in page.text
    assert "the run goes on, or was ended before its last step" in page.text
    numbers = json.loads((workdir / "report.json").read_text())
    assert numbers["data"] is None
    assert [x["unread"] for x in numbers["tables"]] == [None, None]
    assert numbers["tables"][0]["norms"] == run.numbers["tables"][0]["norms"]


def test_a_run_that_continues_shows_what_it_began_with(run: Run, tmp_path: Path):
    summary = run.numbers["summary"]
    numbers = {**run.numbers, "data": None, "record": []}
    numbers["summary"] = summary | {"before": {"test": summary["test"] | {"auc": 0.125}}}
    numbers["continue_from"] = {"checkpoint": "runs/monday/checkpoints/00000007", "step": 7}
    run_page(numbers).write(tmp_path / "page.html")
    rows = [row for row in read(tmp_path / "page.html")[0].rows if row]
    assert [row[0] for row in rows[1:3]] == ["test, before", "train"]
    assert any(cell.startswith("0.125") for cell in rows[1])
    assert ["continues", "step 7 of runs/monday/checkpoints/00000007"] in rows


def test_a_sample_is_of_all_days(run: Run):
    rows = score(run.model.predictor, "test", run.model.data.test, [5, 6], 50)
    assert {day: x["examples"] for day, x in by_day(rows).items()} == {5: 25, 6: 25}
    assert rows.total == 200
    data = run.numbers["data"]
    predicted = {"test": {**data["predicted"]["test"], "examples": 50}}
    page = Page("sample")
    run_sections.days(page, {**data, "days": data["days"][:1], "predicted": predicted})
    run_sections.feature_importances(page, {**data, "importances": None})
    page.write(run.workdir.parent / "sample.html")
    text = read(run.workdir.parent / "sample.html")[0].text
    assert "test: 50 of 200 rows." in text
    assert "Left out by --permutations=0." in text


def test_what_is_not_of_the_run_is_an_error(run: Run, tmp_path: Path):
    with pytest.raises(UserError, match=r"expected the workdir of a run, .* has no checkpoints/"):
        write(tmp_path, None)
    workdir = shutil.copytree(run.workdir, tmp_path / "copy")
    other = tmp_path / "other"
    other.mkdir()
    for day in range(2):
        np.save(other / f"day_{day}_dense.npy", np.zeros((4, 1), np.float32))
        np.save(other / f"day_{day}_sparse.npy", np.zeros((4, 2), np.int32))
        np.save(other / f"day_{day}_labels.npy", np.array([[0], [1], [0], [1]], np.int32))
    with pytest.raises(UserError, match="was trained on other data than"):
        write(workdir, other)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "split": "train"}\n{"step": 1, "split": "test", "auc": "x"}\n{"st')
    assert read_lines(workdir) == run.numbers["record"]
    summary = json.loads((workdir / "summary.json").read_text())
    for damaged in (
        "[",
        "[1]",
        json.dumps(summary | {"test": {"auc": "x"}}),
        json.dumps(summary | {"before": {"test": {"auc": 0.5}}}),
    ):
        (workdir / "summary.json").write_text(damaged)
        with pytest.raises(UserError, match=r"summary\.json: expected the summary that a run"):
            write(workdir, None)
    for name in ("report.json", "report.html"):
        (workdir / name).write_text('{"mine": 1}')
        with pytest.raises(UserError, match=f"{name} exists, and this program didn't make it"):
            write(workdir, None)
        assert (workdir / name).read_text() == '{"mine": 1}'
        (workdir / name).unlink()
        (workdir / name).mkdir()
        with pytest.raises(UserError, match=f"{name} is a directory; expected an earlier report"):
            write(workdir, None)
        (workdir / name).rmdir()
        shutil.copy(run.workdir / name, workdir / name)


def test_a_run_of_another_user_has_its_page_elsewhere(
    run: Run, tmp_path: Path, read_only: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
):
    read_only(run.workdir)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "load", None)  # it isn't called
        with pytest.raises(UserError, match=r"cannot write .*html: Perm.*; give .* as --output"):
            write(run.workdir, None)
    page = write(run.workdir, None, output=tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["workdir"] == str(run.workdir)

"""Comparisons on data of every teacher, side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_job import run

from dlrm_jax.cli.pictures import save
from dlrm_jax.config import Config
from dlrm_jax.training.config_data import generate_data
from experiments.compare import contest
from experiments.compare.bounds import ORDER_BLIND, TEACHER, bounds
from experiments.compare.results_page import flops_of
from experiments.compare.tasks import Clicks
from experiments.compare.teachers import draw, table
from experiments.compare.trials import Contender, Result

SMALL = Config(
    table_rows=(5, 30, 30), bag_lengths=(1, 1, 8), embedding_dim=4, dense_features=2,
    bottom_mlp=(4,), top_mlp=(8, 1), examples=20_000, teacher="sequential",
)  # fmt: skip


def x_of(line: Any) -> float:
    return float(line.get_xdata()[0])


def test_the_teacher_bounds_all_models_and_those_without_the_order_more():
    data = generate_data(SMALL)
    found = bounds(SMALL, Clicks(data))
    assert list(found) == [TEACHER, ORDER_BLIND]
    assert data.teacher_auc is not None
    assert found[TEACHER]["auc"] == pytest.approx(data.teacher_auc["test"], abs=1e-6)
    assert found[ORDER_BLIND]["auc"] < found[TEACHER]["auc"] - 0.01
    assert found[TEACHER]["normalized_entropy"] < found[ORDER_BLIND]["normalized_entropy"] < 1

    additive = dataclasses.replace(SMALL, teacher="additive")
    assert list(bounds(additive, Clicks(generate_data(additive)))) == [TEACHER]
    given = dataclasses.replace(data, teacher_auc=None)
    assert bounds(SMALL, Clicks(given)) == {}


def test_all_adds_every_other_model_that_the_features_allow():
    named = contest._named(["rankmixer:tokens=4", "all"], SMALL)
    assert named[0] == "rankmixer:tokens=4"
    assert {"dlrm", "mmoe", "din:target=C2", "hstu:target=C2", "stca:target=C2"} <= set(named)
    assert not {"ncf", "rankmixer", "din"} & set(named)
    for other in ({"bag_lengths": (1, 1, 1)}, {"table_rows": (5, 20, 30)}):
        without = contest._named(["all"], dataclasses.replace(SMALL, **other))
        assert not any("target" in name for name in without)
        assert len(without) == len(named) - 3


def test_a_table_and_a_picture_of_all_teachers(tmp_path: Path):
    rng = np.random.default_rng(0)

    def result(name: str, mean: float) -> Result:
        trials = [
            {"test": {"auc": mean + 1e-4 * rng.normal()}, "parameters": 1200, "flops": 3e6}
            for _ in range(3)
        ]
        return Result(Contender(name, "adam"), 0.01, trials)

    found = {
        "pairs": ([result("fm", 0.7), result("dlrm:x=1", 0.8)], {TEACHER: {"auc": 0.81}}),
        "sequential": (
            [result("fm", 0.71), result("dlrm:x=1", 0.75)],
            {TEACHER: {"auc": 0.79}, ORDER_BLIND: {"auc": 0.75}},
        ),
    }
    rows = table(found, "auc")
    assert rows[0][:4] == ("model", "parameters", "matrix FLOPs per example", "AUC, pairs")
    assert [row[0] for row in rows[1:]] == ["dlrm", "fm", TEACHER, ORDER_BLIND]
    assert rows[1][1:3] == ("1.2k", "3M")
    assert [row[4] for row in rows[1:]] == ["1", "2", "", ""]
    assert rows[4][3:] == ("", "", "0.7500", "")
    figure = draw(found, "auc")
    drawn = [[x_of(line) for line in axes.lines[1:4:2]] for axes in figure.axes]
    np.testing.assert_allclose(drawn, [[0.7, 0.8], [0.71, 0.75]], atol=1e-3)
    save(figure, str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_a_model_with_several_options_has_a_row_and_a_point_for_each():
    def result(name: str, auc: float) -> Result:
        return Result(
            Contender(name, "adam"), 0.01, [{"test": {"auc": auc}, "parameters": 1, "flops": 1}]
        )

    results = [result("dcn_v2:rank=2", 0.7), result("dcn_v2:rank=8", 0.8), result("fm", 0.6)]
    found = {"pairs": (results, {})}
    assert [row[0] for row in table(found, "auc")[1:]] == [
        "dcn_v2:rank=2, adam", "dcn_v2:rank=8, adam", "fm",
    ]  # fmt: skip
    (axes,) = draw(found, "auc").axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["fm", "dcn_v2:rank=8, adam", "dcn_v2:rank=2, adam"]
    assert [x_of(line) for line in axes.lines[1::2]] == [0.6, 0.8, 0.7]


def test_flops_of_loops_over_histories_are_not_shown():
    trials = [{"flops": 1200.0}]
    assert flops_of(Result(Contender("fm", "adam"), 0.1, trials)) == "1.2k"
    assert flops_of(Result(Contender("hstu:target=C2", "adam"), 0.1, trials)) == "-"


@pytest.mark.thorough
def test_each_teacher_has_a_comparison(tmp_path: Path):
    flags = (
        "--table_rows=5,30,30", "--bag_lengths=1,1,4", "--embedding_dim=4", "--dense_features=2",
        "--examples=2000", "--batch_size=128", "--evaluation_batch_size=256", "--evaluations=1",
        "--models=logistic_regression", "--learning_rates=0.1", "--seeds=2",
    )  # fmt: skip
    program = ("-m", "experiments.compare.teachers")
    result = run(*flags, f"--workdir={tmp_path}", program=program)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "AUC, sequential" in result.stdout
    assert "that of the teacher without the order: 0." in result.stdout
    for teacher in ("pairs", "additive", "sequential"):
        (found,) = json.loads((tmp_path / teacher / "results.json").read_text())["results"]
        assert found["trials"][0]["trial"]["teacher"] == teacher
    rows = (tmp_path / "teachers.md").read_text().splitlines()
    assert rows[2].startswith("| logistic_regression | ")
    flat = run(
        "--table_rows=5,30", "--bag_lengths=1,1", f"--workdir={tmp_path / 'x'}", program=program
    )
    assert "teacher: sequential expects a history" in flat.stderr
    assert not list((tmp_path / "x").glob("*/trials/*")), "before the first trial"
    refused = run("--teacher=pairs", program=program)
    assert refused.returncode == 2
    assert "--teacher has no effect: every teacher has" in refused.stderr

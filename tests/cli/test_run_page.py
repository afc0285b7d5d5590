"""The report of runs without data, of several labels, or with rows that training never reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from page_reader import read

import dlrm_jax
from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.run_page import by_label, unread_rows
from dlrm_jax.cli.run_pictures import draw_curves
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError

CONFIG = Config(
    embedding_dim=4, bottom_mlp=(4,), top_mlp=(4, 1), batch_size=64, evaluation_batch_size=64
)


@pytest.mark.parametrize(
    ("config", "start", "text"),
    [
        ({}, {}, "A row that training never reads keeps its initial values."),
        ({"table_l2": 0.1}, {}, "A row that training never reads keeps its initial values."),
        (
            {"table_l2": 0.1, "table_l2_rows": "all"},
            {"continue_from": {"checkpoint": "c", "step": 7}},
            "table_l2_rows=all shrinks rows that training never reads, too.",
        ),
        (
            {},
            {"continue_from": {"checkpoint": "c", "step": 7}},
            "A row that training never reads keeps the values that it had in the run that this "
            "one continues; a new one keeps its initial values.",
        ),
        (
            {"unseen_rate": 0.1},
            {"warm_start": {"source": "w", "names": ["all"]}},
            "A row that training never reads keeps the values of the warm start if that gives its "
            "table, or else its initial values. By unseen_rate, training also reads the row of "
            "unseen values, which isn't counted here.",
        ),
    ],
)
def test_what_rows_are_that_training_never_reads(
    config: dict[str, Any], start: dict[str, Any], text: str
):
    none = {"warm_start": None, "continue_from": None}
    fields = dataclasses.asdict(dataclasses.replace(CONFIG, **config))
    assert unread_rows({**none, **start, "config": fields}) == text


@pytest.mark.thorough
@pytest.mark.parametrize("program", ["dlrm_jax.cli.report"], indirect=True)
def test_a_run_on_generated_examples_needs_no_data(program: ModuleType, tmp_path: Path):
    generated = dataclasses.replace(
        CONFIG, table_rows=(30, 300), dense_features=2, examples=1000, epochs=1,
        model="wide_deep", compression="quotient_remainder",
    )  # fmt: skip
    dlrm_jax.fit(generated, workdir=tmp_path)
    cli_flags.parse(["report", f"--run={tmp_path}", "--batch_size=64", "--permutations=1"])
    program.main()
    page, _ = read(tmp_path / "report.html")
    assert "The data have no days." in page.text
    assert "The run has no vocabularies, so values are shown as ids." in page.text
    numbers = json.loads((tmp_path / "report.json").read_text())
    tables = {x["table"]: x for x in numbers["tables"]}
    assert list(tables) == ["C1", "C1.weight", "C2.quotient", "C2.remainder", "C2.weight"]
    # 800 training examples read each table once.
    remainders = tables["C2.remainder"]["hot"]
    assert sum(x["reads"] for x in remainders) == 800
    assert all(x["value"] == "" for x in remainders)
    assert tables["C1"]["hot"][0]["value"].startswith("id ")


def test_metrics_of_several_labels_have_lines_of_their_own():
    metrics = {"auc": 1, "gauc:user/x": 2, "bought/auc": 3, "bought/gauc:user/x": 4}
    expected = {"": {"auc": 1, "gauc:user/x": 2}, "bought": {"auc": 3, "gauc:user/x": 4}}
    assert by_label(metrics) == expected
    losses = [{"log_loss": 0.5, "bought/log_loss": 0.1}, {"log_loss": 0.4, "bought/log_loss": None}]
    record = [{"split": "validation", "step": i, **x} for i, x in enumerate(losses, 1)]
    figure = draw_curves(record, "validation", None, [], {"": 1, "bought/": 2})
    training, validation = figure.axes[0].get_lines()
    assert training.get_label() == "training loss, sum over labels"
    assert validation.get_label() == "validation log loss, sum over labels"
    assert np.asarray(validation.get_xydata()).tolist() == [[1, 0.7]]


@pytest.mark.parametrize("program", ["dlrm_jax.cli.report"], indirect=True)
def test_flags_that_nothing_would_read_are_refused(program: ModuleType):
    cli_flags.parse(["report"])
    with pytest.raises(UserError, match="--data is missing: data to describe; or --run"):
        program.main()
    cli_flags.parse(["report", "--data=x", "--permutations=1"])
    with pytest.raises(UserError, match="--permutations has no effect without --run"):
        program.main()

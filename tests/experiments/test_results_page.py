"""The page of a comparison shows names as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from saved_run import CONFIG, examples

from dlrm_jax.data.arrays import Dataset
from experiments.compare.results_page import mean_and_deviation, write_page
from experiments.compare.tasks import Clicks
from experiments.compare.trials import Contender, Result

NAME = "<script>alert(1)</script>"


def test_nothing_is_markup(tmp_path: Path):
    split = examples(20)
    data = Dataset(
        split, split, split, CONFIG.table_rows, CONFIG.bag_lengths, "f", f"20 examples of {NAME}"
    )
    metrics = dict.fromkeys(Clicks(data).shown, 0.5)
    point = {"step": 1, "train": metrics, "validation": metrics}
    costs = dict.fromkeys(("milliseconds", "parameters", "flops", "bytes", "temporary_bytes"), 1)
    trial = {"test": metrics, "curve": [point, point], **costs}
    contender = Contender(f"mine:{NAME}:text={NAME}", "sgd")
    write_page([Result(contender, 0.1, [trial, trial])], Clicks(data), {}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5  # of the data, and twice in each table
    assert "standard deviation over 2 seeds" in page
    write_page([Result(contender, 0.1, [trial])], Clicks(data), {}, tmp_path / "page.html")
    assert "split; of 1 seed." in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert dataclasses.asdict(contender)["name"] not in page


def test_a_seed_that_diverges_is_no_number():
    assert mean_and_deviation([0.75]) == "0.7500"
    assert mean_and_deviation([0.5, 0.7]) == "0.6000 ± 0.1414"
    assert mean_and_deviation([0.7, float("nan")]) == "nan"

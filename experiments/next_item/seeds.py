"""Prints the mean and the deviation of runs that differ in their seed alone.

    python -m experiments.next_item.seeds --runs=runs/sasrec-1,runs/sasrec-2,runs/hstu-1,runs/hstu-2

The runs are workdirs of ``experiments.next_item`` or of ``recbole_sasrec.py``. Those whose names
are the same up to their last hyphen are seeds of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json
from dlrm_jax.text_table import text_table

flags.DEFINE_list("runs", None, "Workdirs of runs; such as runs/sasrec-1,runs/sasrec-2.")
flags.DEFINE_list("metrics", ["hr@10", "ndcg@10"], "Metrics that are shown; such as hr@50,mrr.")


def main() -> None:
    """One line for each model, with its validation and its test."""
    if not FLAGS.runs:
        raise UserError("--runs: expected workdirs, got none; such as --runs=runs/sasrec-1")
    paths = [Path(run) for run in FLAGS.runs]
    if twice := [path for path in paths if [x.resolve() for x in paths].count(path.resolve()) > 1]:
        raise UserError(f"--runs: expected each run once, got {twice[0]} more than once")
    models: dict[str, list[dict[str, dict[str, float]]]] = {}
    for path in paths:
        models.setdefault(path.name.rpartition("-")[0] or path.name, []).append(read(path))
    columns = [(split, name) for split in ("validation", "test") for name in FLAGS.metrics]
    rows = [
        [
            model,
            str(len(found)),
            *(
                shown([x[split][name] if split in x else None for x in found])
                for split, name in columns
            ),
        ]
        for model, found in models.items()
    ]
    status(text_table(["model", "seeds", *(f"{x} {name}" for x, name in columns)], rows))


def read(workdir: Path) -> dict[str, dict[str, float]]:
    """The model's metrics by split; without those of validation if there were no questions for it.

    Raises:
        UserError: there is no summary, or a metric isn't in it.
    """
    path = workdir / "summary.json"
    try:
        summary = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected the summary of a run of experiments.next_item: {error!r}; wait for "
            f"the end of the run"
        ) from error
    if not isinstance(summary, dict) or "test" not in summary:
        raise UserError(
            f"{path}: expected the summary of a run of experiments.next_item, got something else"
        )
    splits = [split for split in ("validation", "test") if split in summary]
    return {split: _metrics(summary[split], f"{path}: {split}") for split in splits}


def _metrics(of_split: Any, name: str) -> dict[str, float]:
    """The metrics that are asked for, of the model and not of those that it is compared with."""
    model = of_split.get("model") if isinstance(of_split, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{name}: expected metrics of the model, got {model}; run it again")
    numbers = {metric: x for metric, x in model.items() if type(x) in (int, float)}
    for metric in FLAGS.metrics:
        if metric not in numbers:
            known = ", ".join(numbers)
            raise UserError(f"--metrics: {name} has no number {metric!r}; it has {known}")
    return {metric: numbers[metric] for metric in FLAGS.metrics}


def shown(values: Sequence[float | None]) -> str:
    """The mean, and of several values their standard deviation; nothing if a run has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean = f"{np.mean(known):.4f}"
    return f"{mean} ± {np.std(known, ddof=1):.4f}" if len(known) > 1 else mean


if __name__ == "__main__":
    run(main)

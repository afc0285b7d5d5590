"""Prints the mean and the deviation of runs that differ in their seed alone.

    python -m experiments.next_item.seeds --runs=runs/sasrec-1,runs/sasrec-2,runs/hstu-1,runs/hstu-2

The runs are workdirs of ``experiments.next_item`` or of ``recbole_sasrec.py``. Those whose names
are the same up to their last hyphen are seeds of one model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.text_table import text_table

flags.DEFINE_list("runs", None, "Workdirs of runs; such as runs/sasrec-1,runs/sasrec-2.")
flags.DEFINE_list("metrics", ["hr@10", "ndcg@10"], "Metrics that are shown; such as hr@50,mrr.")


def main() -> None:
    """One line for each model, with its validation and its test."""
    if not FLAGS.runs:
        raise UserError("--runs: expected workdirs, got none; such as --runs=runs/sasrec-1")
    models: dict[str, list[dict[str, dict[str, float]]]] = {}
    for path in map(Path, FLAGS.runs):
        models.setdefault(path.name.rpartition("-")[0] or path.name, []).append(read(path))
    columns = [(split, name) for split in ("validation", "test") for name in FLAGS.metrics]
    rows = [
        [
            model,
            str(len(found)),
            *(shown([x[split][name] for x in found]) for split, name in columns),
        ]
        for model, found in models.items()
    ]
    status(text_table(["model", "seeds", *(f"{x} {name}" for x, name in columns)], rows))


def read(workdir: Path) -> dict[str, dict[str, float]]:
    """The model's metrics by split.

    Raises:
        UserError: there is no summary, or a metric isn't in it.
    """
    path = workdir / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        found = {split: summary[split]["model"] for split in ("validation", "test")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: expected the summary of a run of experiments.next_item: {error!r}; wait for "
            f"the end of the run"
        ) from error
    for metrics in found.values():
        for name in FLAGS.metrics:
            if name not in metrics:
                raise UserError(f"--metrics: {path} has no {name!r}; it has {', '.join(metrics)}")
    return found


def shown(values: list[float]) -> str:
    """The mean, and of several values their standard deviation."""
    mean = f"{np.mean(values):.4f}"
    return f"{mean} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else mean


if __name__ == "__main__":
    run(main)

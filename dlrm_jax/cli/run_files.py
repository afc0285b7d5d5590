"""The files of a run that a report shows: its metrics and its summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json
from dlrm_jax.training.record import read_record

_NEEDED = {"train": "loss", "learning_rate": "factor"}
_SPLITS = ("train", "validation", "test", "test_of_last", "prequential")


def read_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that are numbers by name; damaged ones are left out."""
    lines = read_record(run / "metrics.jsonl")
    return [x for x in lines if _are_numbers(x) and _NEEDED.get(x["split"], "step") in x]


def read_summary(run: Path) -> dict[str, Any] | None:
    """``summary.json``; None if the run hasn't written it yet.

    Raises:
        UserError: it isn't what a run writes.
    """
    path = run / "summary.json"
    if not path.exists():
        return None
    try:
        summary = read_json(path)
        good = (
            type(summary["steps"]) is int
            and all(isinstance(summary[name], str) for name in ("mesh", "devices"))
            and type(summary["batch_size"]) is int
            and all(
                summary.get(name) is None or type(summary[name]) in (int, float)
                for name in ("best_step", "examples_per_second", "teacher_auc")
            )
            and all(map(_are_metrics, (summary[x] for x in _SPLITS if summary.get(x) is not None)))
            and all(map(_are_metrics, dict(summary.get("before", {})).values()))
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path) from error
    if not good:
        raise _damaged(path)
    return summary


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: expected the summary that a run writes; move the file away, and run the training "
        f"again with this workdir, which writes it anew"
    )


def _are_metrics(value: Any) -> bool:
    return _are_numbers(value) and "examples" in value


def _are_numbers(value: Any) -> bool:
    """Whether a value is a dict of numbers by name; but for its split."""
    return isinstance(value, dict) and all(
        isinstance(number, str)
        if name == "split"
        else name.isprintable() and type(number) in (int, float, type(None))
        for name, number in value.items()
    )

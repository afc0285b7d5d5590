"""Numbers and names as pages show them."""

from __future__ import annotations

from dlrm_jax.cli.pictures import percent

_NAMES = {
    "examples": "rows",
    "label_rate": "label 1",
    "prediction": "mean prediction",
    "log_loss": "log loss",
    "normalized_entropy": "normalized entropy",
    "auc": "AUC",
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
}


def metric_name(name: str) -> str:
    """A metric as the head of a column: ``log loss`` for ``log_loss``."""
    return _NAMES.get(name, name)


def counted(count: int, thing: str) -> str:
    """A number of things: 1 seed, 2 seeds."""
    return f"{count:,} {thing}" + "s" * (count != 1)


def number(value: float | None, digits: int = 4) -> str:
    """A number as text; a dash without one."""
    if value is None:
        return "\u2013"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # -0.0 + 0.0 is 0.0


def share(value: float | None) -> str:
    """A share as text; a dash without one."""
    return percent(float("nan") if value is None else value)


def shortened(text: str, most: int = 60) -> str:
    """A text that leaves room for the rest of its line."""
    return text if len(text) <= most else f"{text[: most - 1]}…"

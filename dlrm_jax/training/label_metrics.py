"""Metrics of a split by label: one flat mapping from names to numbers.

The main label's metrics have plain names, such as ``auc``; those of another label have it in
front: ``purchased/auc``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from dlrm_jax.training.metrics import METRICS

Metrics = dict[str, Any]
"""Numbers by name, or tables of calibrations."""

OfLabel = Callable[[np.ndarray, np.ndarray, Any], Metrics]
"""A function of the logits and values of one label, and of the examples that have it."""


def label_metrics(
    logits: Float[np.ndarray, "N *_"],
    labels: Shaped[np.ndarray, "N *_"],
    names: Sequence[str],
    of_label: OfLabel,
    numbers: Sequence[str] = METRICS,
) -> Metrics:
    """The metrics of each label, over the examples that have it.

    Args:
        logits: logits, [N], or [N, H] of several labels.
        labels: labels, of the same shape; NaN where an example lacks one of several.
        names: names of the labels, H of them.
        of_label: function of the logits and values of one label, and of what selects its examples.
        numbers: names of a label's numbers besides ``examples``.

    Returns:
        The metrics by name. Those of a label that no example has are NaN, and ``examples`` 0.
    """
    if len(names) == 1:
        return of_label(logits, labels, slice(None))
    found: Metrics = {}
    for i, name in enumerate(names):
        has = ~np.isnan(labels[:, i])
        own = of_label(logits[has, i], labels[has, i], has) if has.any() else no_metrics(numbers)
        found |= {prefix(names, name) + each: value for each, value in own.items()}
    return found


def prefix(names: Sequence[str], label: str) -> str:
    """What stands before the names of a label's metrics: nothing for the main label."""
    return "" if label == names[0] else f"{label}/"


def rows_by_label(
    names: Sequence[str], summary: Mapping[str, Any], splits: Mapping[str, str]
) -> list[list[str]]:
    """Lines of a table: for each split and label, its name, `METRICS`, and number of examples.

    Args:
        names: names of the labels.
        summary: metrics of each split.
        splits: name in the table of each split, if the summary has it.
    """
    rows = []
    for split, title in splits.items():
        if split not in summary:
            continue
        for label in names:
            found, before = summary[split], prefix(names, label)
            text = [f"{found[before + metric]:.5f}" for metric in METRICS]
            of_label = f"{title}, {label}" if len(names) > 1 else title
            rows.append([of_label, *text, f"{found[before + 'examples']:,}"])
    return rows


def no_metrics(numbers: Sequence[str], examples: int = 0) -> Metrics:
    """The metrics of a label that can't be measured: NaN.

    Args:
        numbers: names of its numbers.
        examples: number of its examples; none has a weight.
    """
    return {**dict.fromkeys(numbers, float("nan")), "examples": examples}

"""Some of the labels of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.errors import UserError


def with_labels(data: Dataset, names: Sequence[str]) -> Dataset:
    """A data set with these labels alone, in this order.

    Raises:
        UserError: it doesn't have one of them.
    """
    for name in names:
        if name not in data.labels:
            raise UserError(
                f"labels: the data have no label {name!r}; they have {', '.join(data.labels)}"
            )
    if tuple(names) == data.labels:
        return data

    def only(split: Split) -> Split:
        chosen = [chosen_labels(day.labels, data.labels, names) for day in split.days]
        pairs = zip(split.days, chosen, strict=True)
        return Split(tuple(dataclasses.replace(day, labels=labels) for day, labels in pairs))

    splits: dict[str, Any] = {name: only(split) for name, split in data.splits.items()}
    return dataclasses.replace(data, **splits, labels=tuple(names))


def chosen_labels(
    labels: Shaped[np.ndarray, "N *_"], there: Sequence[str], names: Sequence[str]
) -> Shaped[np.ndarray, "N *_"]:
    """The labels of some names, [N], or [N, H] of several; NaN for those that aren't there.

    Args:
        labels: labels, [N], or [N, K] of several.
        there: names of the labels, K of them.
        names: names of those to take, H of them.
    """
    if tuple(names) == tuple(there):
        return labels
    columns = np.asarray(labels).reshape(len(labels), -1)
    if len(names) == 1 and names[0] in there:  # a view
        return columns[:, [*there].index(names[0])]
    none = np.full(len(columns), np.nan, np.float32)
    taken = [columns[:, [*there].index(x)] if x in there else none for x in names]
    return taken[0] if len(names) == 1 else np.stack(taken, axis=1).astype(np.float32)

"""Metrics that a config asks for besides the usual ones: ``metrics`` of `Config`.

| item | number |
|---|---|
| ``gauc:COLUMN`` | AUC of each group of examples, averaged by the groups' weights |
| ``recall_at_precision:P`` | greatest recall at a threshold whose precision is P or more |
| ``calibration_error:BUCKETS`` | see `calibration`, by buckets of prediction |
| ``calibration_by:COLUMN`` | see `calibration`, by the values of a column |
| ``MODULE:FUNCTION`` | a function's own; with ``:max`` or ``:min``, the best is known |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Shaped

from dlrm_jax.data.auc import grouped_auc
from dlrm_jax.errors import UserError
from dlrm_jax.training.calibration import Parts, by_bucket, by_value
from dlrm_jax.training.named_functions import named_function

_WITH_COLUMN = ("gauc", "calibration_by")
_WITH_PARTS = ("calibration_by", "calibration_error")
_KINDS = (*_WITH_COLUMN, "recall_at_precision", "calibration_error")
_EXPECTED = (
    "gauc:COLUMN, calibration_by:COLUMN, recall_at_precision:P, calibration_error:BUCKETS or "
    "MODULE:FUNCTION"
)
_MOST_BUCKETS = 10_000


class Scored(NamedTuple):
    """Examples with predictions.

    Attributes:
        logits: logits as the model gives them, [N].
        shift: number to add to them for a probability.
        labels: labels, [N].
        weights: weights, [N]; None if all are 1.
        groups: codes of the columns that metrics group by, [N] each, by name.
    """

    logits: Float[np.ndarray, " N"]
    shift: float
    labels: Shaped[np.ndarray, " N"]
    weights: Float[np.ndarray, " N"] | None
    groups: Mapping[str, Int64[np.ndarray, " N"]]


@dataclasses.dataclass(frozen=True)
class ExtraMetric:
    """One item of ``metrics``.

    Attributes:
        name: the item; its number has this name.

    Raises:
        UserError: there is no such metric, or its number is out of range; nothing is imported.
    """

    name: str

    def __post_init__(self) -> None:
        kind, separator, argument = self.name.partition(":")
        if not separator or not argument:
            raise UserError(f"metrics: expected {_EXPECTED}, got {self.name!r}")
        if kind == "recall_at_precision" and not _is_number(argument, 0, 1):
            raise UserError(
                f"metrics: {kind} needs a precision above 0, up to 1, such as {kind}:0.9; got "
                f"{self.name!r}"
            )
        if kind == "calibration_error" and not (
            argument.isdecimal() and 1 <= int(argument) <= _MOST_BUCKETS
        ):
            raise UserError(
                f"metrics: {kind} needs a number of buckets from 1 to {_MOST_BUCKETS:,}, such as "
                f"{kind}:10; got {self.name!r}"
            )

    @property
    def kind(self) -> str:
        """The part before the colon; empty of a function."""
        kind = self.name.partition(":")[0]
        return kind if kind in _KINDS else ""

    @property
    def argument(self) -> str:
        """The part behind the colon."""
        return self.name.partition(":")[2]

    @property
    def column(self) -> str | None:
        """The column that it groups by; None if it groups by none."""
        return self.argument if self.kind in _WITH_COLUMN else None

    @property
    def function(self) -> str | None:
        """MODULE:FUNCTION that must be imported for it; None if it is one of ours."""
        return None if self.kind else self.name.removesuffix(":max").removesuffix(":min")

    @property
    def has_parts(self) -> bool:
        """Whether it is a calibration in parts, which has a table and a worst part."""
        return self.kind in _WITH_PARTS

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of its numbers."""
        return (self.name, f"{self.name}:worst") if self.has_parts else (self.name,)

    def check_function(self) -> None:
        """Calls a function of the user's own with four examples.

        Raises:
            UserError: it can't be imported, fails, or gives no finite number.
        """
        if self.function is None:
            return
        logits, labels = np.array([-1.0, -0.5, 0.5, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
        found = self._of_function(Scored(logits, 0.0, labels, None, {}))
        if not np.isfinite(found):
            raise UserError(
                f"metrics: expected {self.name} to give a finite number, got {found} of the logits "
                f"{logits.tolist()}, labels {labels.tolist()} and weights of 1"
            )

    def __call__(self, rows: Scored) -> dict[str, float]:
        """Its numbers by name.

        Raises:
            UserError: a function of the user's own fails or gives no number.
        """
        if self.kind == "gauc":
            groups = rows.groups[self.argument]
            known = groups >= 0
            of_known = rows.weights if rows.weights is None else rows.weights[known]
            found = grouped_auc(rows.logits[known], rows.labels[known], groups[known], of_known)
            return {self.name: found}
        if self.kind == "recall_at_precision":
            least = float(self.argument)
            return {self.name: recall_at_precision(rows.logits, rows.labels, least, rows.weights)}
        parts = self.parts(rows)
        if parts is None:
            return {self.name: self._of_function(rows)}
        worst, mean = parts.worst_and_mean()
        return dict(zip(self.numbers, (mean, worst), strict=True))

    def parts(self, rows: Scored) -> Parts | None:
        """The parts of a calibration; None of another metric."""
        if not self.has_parts:
            return None
        z = rows.logits.astype(np.float64) + rows.shift
        labels = rows.labels.astype(np.float64)
        weights = np.ones(len(z)) if rows.weights is None else rows.weights.astype(np.float64)
        if self.kind == "calibration_by":
            return by_value(z, labels, weights, rows.groups[self.argument])
        return by_bucket(z, labels, weights, int(self.argument))

    def _of_function(self, rows: Scored) -> float:
        function = named_function("metrics", self.function or "")
        weights = np.ones(len(rows.labels)) if rows.weights is None else rows.weights
        try:
            found: Any = function(
                rows.logits.astype(np.float64) + rows.shift,
                rows.labels.astype(np.float64),
                weights.astype(np.float64),
            )
        except Exception as error:
            raise UserError(f"metrics: {self.name} failed: {error!r}") from error
        if np.ndim(found) or np.asarray(found).dtype.kind not in "iufb":
            raise UserError(f"metrics: expected {self.name} to give a number, got {found!r}")
        return float(found)


def extra_metrics(names: Sequence[str]) -> tuple[ExtraMetric, ...]:
    """The metrics of these names.

    Raises:
        UserError: one is malformed, or named twice.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"metrics: {name} is there twice")
    return tuple(map(ExtraMetric, names))


def recall_at_precision(
    scores: Float[np.ndarray, " N"],
    labels: Shaped[np.ndarray, " N"],
    precision: float,
    weights: Float[np.ndarray, " N"] | None = None,
) -> float:
    """The greatest recall of a threshold on the scores whose precision is high enough.

    Args:
        scores: scores, [N].
        labels: 0 or 1, [N].
        precision: least share of positive examples among those from the threshold upwards.
        weights: weights of the examples, [N]; None if all are 1.

    Returns:
        0 if no threshold has that precision, NaN without a positive example.
    """
    order = np.argsort(-scores, kind="stable")
    w = np.ones(len(scores)) if weights is None else weights[order].astype(np.float64)
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # of each run of ties
    right = np.cumsum(np.where(labels[order] > 0.5, w, 0))[last]
    taken = np.cumsum(w)[last]
    if not len(right) or not right[-1]:
        return float("nan")
    enough = right / np.where(taken > 0, taken, 1) >= precision
    return float(right[enough].max() / right[-1]) if enough.any() else 0.0


def _is_number(text: str, above: float, most: float) -> bool:
    try:
        return above < float(text) <= most
    except ValueError:
        return False

"""What it costs to fade features: the metrics of the same rows at each coverage of a schedule."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from dlrm_jax.data.arrays import Split
from dlrm_jax.inference.fade_schedule import FadeSchedule
from dlrm_jax.inference.fading import Fading, covered, request_hashes
from dlrm_jax.inference.part import Part
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.training.extra_metrics import ExtraMetric
from dlrm_jax.training.streamed_measures import StreamedMeasures
from dlrm_jax.training.streamed_metrics import LARGEST

_ALL_COVERED = "all covered"  # by a schedule
_ALL_FEATURES = "all features"  # without one

_FEWEST_LOGITS = 1 << 18  # distinct ones for the AUC of a state, which take 10 MB


class Scenario(NamedTuple):
    """A state of a schedule.

    Attributes:
        name: name for a table.
        coverages: share of rows that see each feature; others see it in all.
    """

    name: str
    coverages: Mapping[str, float]


def scenarios(schedule: FadeSchedule) -> list[Scenario]:
    """The states to compare: each feature alone at each of its coverages, and all of them in time.

    The first is that of all features covered; states that are equal are there once.
    """
    found = [Scenario(_ALL_COVERED, {})]
    for name, points in schedule.features.items():
        for share in sorted({share for _, share in points}, reverse=True):
            found.append(Scenario(f"{name} {share:.4g}", {name: share}))
    for seconds in schedule.instants:
        instant = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        name = instant.isoformat(timespec="seconds").replace("+00:00", "Z")
        found.append(Scenario(name, schedule.coverages(seconds)))
    distinct: dict[object, Scenario] = {}
    for scenario in found:
        faded = {x: share for x, share in scenario.coverages.items() if share < 1}
        distinct.setdefault(frozenset(faded.items()), scenario)
    return list(distinct.values())


class FadedMetrics:
    """The metrics of rows in several states of a schedule.

    Each row counts as a request of its own. It is drawn by its number, so the states, and other
    models, are compared on the same draws.

    Args:
        predictor: model.
        schedule: schedule; None for the metrics of all features covered alone.
        extra: metrics besides the usual ones, see `StreamedMeasures`.
    """

    def __init__(
        self,
        predictor: Predictor,
        schedule: FadeSchedule | None,
        extra: tuple[Sequence[ExtraMetric], Mapping[str, int]] = ((), {}),
    ):
        self._predictor, self._salt, self._rows = predictor, "", 0
        self._fading: Fading | None = None
        self.scenarios = [Scenario(_ALL_FEATURES, {})]
        if schedule:
            self._fading = predictor.fading
            schedule.check_features(self._fading.features)
            self.scenarios, self._salt = scenarios(schedule), schedule.salt
        largest = max(_FEWEST_LOGITS, LARGEST // len(self.scenarios))
        self._measures = [
            [StreamedMeasures(extra, predictor.shift, largest) for _ in predictor.labels]
            for _ in self.scenarios
        ]

    def add(self, parts: Iterable[Part]) -> int:
        """Adds rows with the predictions of all features covered; returns the number of all."""
        for part in parts:
            numbers = map(str, range(self._rows, self._rows + len(part.rows)))
            hashes = request_hashes(numbers, self._salt)
            labels = part.labels.reshape(len(part.rows), -1)
            for scenario, measures in zip(self.scenarios, self._measures, strict=True):
                logits = part.logits
                if self._fading and scenario.coverages:
                    seen = covered(hashes, scenario.coverages)
                    logits = self._logits(self._fading, part, seen)
                logits = logits.reshape(labels.shape)
                for i, measure in enumerate(measures):
                    measure.add(logits[:, i], labels[:, i], part.rows)
            self._rows += len(part.rows)
        return self._rows

    def _logits(
        self, fading: Fading, part: Part, seen: Mapping[str, Bool[np.ndarray, " N"]]
    ) -> Float32[np.ndarray, "N *_"]:
        """The logits of rows; of those that see all features, they are there."""
        changed = np.flatnonzero(~np.all([*seen.values()], axis=0))
        logits = part.logits
        if len(changed):
            own = {name: rows[changed] for name, rows in seen.items()}
            faded = Split((fading.apply(part.rows.take(changed), own),))
            logits = logits.copy()
            logits[changed] = np.concatenate([*self._predictor.logits(faded)])
        return logits

    def metrics(self, label: int = 0) -> Sequence[Mapping[str, float | int]] | None:
        """The metrics in each state, in their order; None if no row has the label.

        Args:
            label: place of the label among the predictor's.
        """
        if not self._measures[0][label].rows:
            return None
        return [measures[label].metrics() for measures in self._measures]

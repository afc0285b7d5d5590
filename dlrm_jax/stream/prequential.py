"""Prequential evaluation: each batch is predicted by the model that hasn't seen it.

Every example is a test example once, and then a training example (Gama, Sebastião and Rodrigues,
2013, "On evaluating stream learning algorithms"). Metrics are those of windows of steps, so that
they show how the model follows its stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.preprocessing.raw_ids import group_codes
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import file_name
from dlrm_jax.stream.batches import StreamBatch
from dlrm_jax.training.extra_metrics import extra_metrics
from dlrm_jax.training.measures import Measures, check_grouping

SPLIT = "prequential"
"""The name of the windows in ``metrics.jsonl``."""

_GROUP, _WINDOW = "group_", "window_"


class Prequential:
    """The examples of the current window, and their metrics at its end.

    Args:
        config: config of the run; its ``metrics`` are measured besides the usual ones.
        schema: meaning of the columns.
        examples: number of examples of a window, rounded to whole batches.

    Attributes:
        steps: number of steps of a window.

    Raises:
        UserError: a metric groups by a column that the stream doesn't have.
    """

    def __init__(self, config: Config, schema: Schema, examples: int):
        check_grouping(config, schema.categorical, schema.groups)
        self.steps = max(1, round(examples / config.batch_size))
        self._measures = Measures(extra_metrics(config.metrics), labels=schema.labels)
        starts = np.cumsum([0, *schema.lengths[:-1]]).tolist()
        places = dict(zip(schema.categorical, starts, strict=True))
        columns = {x.column for x in self._measures.extra if x.column}
        self._places = {x: None if x in schema.groups else places[x] for x in sorted(columns)}
        self._parts: list[dict[str, np.ndarray]] = []
        self._time = 0.0

    def add(
        self, step: int, logits: Float32[np.ndarray, "B *_"], given: StreamBatch
    ) -> dict[str, Any] | None:
        """Adds the predictions of a batch, made before its step.

        Args:
            step: number of the step, from 1. Windows end at multiples of `steps`.
            logits: logits, [B], or [B, H] of several labels.
            given: the batch.

        Returns:
            The metrics of the window if it ends here, with ``position``, the number of examples of
            the stream so far, and with a timestamp ``time``, that of the latest, in seconds since
            1970. None otherwise.

        Raises:
            UserError: a logit isn't finite.
        """
        if not np.isfinite(logits).all():
            raise UserError(
                f"{np.sum(~np.isfinite(logits))} of the {logits.size} predictions before step "
                f"{step} aren't finite; lower the learning rate, clip gradients, or look for "
                f"values out of range in the data. Earlier checkpoints are intact"
            )
        rows = given.rows
        part = {"logits": logits, "labels": rows.labels, "sample_weights": rows.sample_weights}
        for column, place in self._places.items():
            # The batch's own ids are rows, which several values may share.
            codes = rows.groups[column] if place is None else group_codes(rows.raw, place)
            part[_GROUP + column] = codes
        self._parts.append(part)
        self._time = max(self._time, float(rows.times.max()) / 1e6)
        if step % self.steps:
            return None
        found = dict(self._measure())
        found["position"] = given.progress.examples
        if self._time:
            found["time"] = self._time
        self._parts.clear()
        self._time = 0.0
        return found

    def _measure(self) -> Mapping[str, Any]:
        rows = _joined(self._parts)
        count = len(rows["labels"])
        groups = {x: rows[_GROUP + x] for x in self._places}
        examples = Examples(
            np.zeros((count, 0), np.float32),
            np.zeros((count, 0), np.int32),
            rows["labels"],
            rows["sample_weights"],
            groups,
        )
        return self._measures(rows["logits"], Split((examples,)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The examples of the window so far, for a checkpoint; none at the end of one."""
        if not self._parts:
            return {}
        rows = _joined(self._parts) | {"time": np.array([self._time])}
        return {_WINDOW + file_name(name): array for name, array in rows.items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the examples that `arrays` gave.

        Those of before have no groups (-1) for a metric that is new.
        """
        if not arrays:
            return
        count = len(arrays[_WINDOW + "labels"])
        none = np.full(count, -1, np.int64)
        names = ["logits", "labels", "sample_weights"]
        rows = {name: arrays[_WINDOW + name] for name in names}
        for column in self._places:
            name = _GROUP + column
            rows[name] = arrays.get(_WINDOW + file_name(name), none)
        self._parts, self._time = [rows], float(arrays[_WINDOW + "time"][0])


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

"""Features that a server fades: which requests see them now, by a schedule that may change."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.data.arrays import Examples
from dlrm_jax.errors import UserError
from dlrm_jax.inference.fade_schedule import FadeSchedule
from dlrm_jax.inference.fading import Fading, covered, request_hashes
from dlrm_jax.inference.predictor import Predictor

_log = logging.getLogger(__name__)

_SECONDS = 1.0  # between two looks at the file


class LiveFading:
    """The schedule of a server. It is read again when its file changes; a bad one isn't taken.

    Args:
        path: file of the schedule.
        clock: seconds since 1970.

    Raises:
        UserError: it can't be read, or isn't a schedule.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time):
        self._path, self._clock = path, clock
        self._changed, self._looked = _changed(path), clock()
        self._schedule = FadeSchedule.read(path)
        self._versions: dict[str, Fading] = {}

    def add(self, version: str, predictor: Predictor) -> None:
        """Adds a version of the model.

        It may lack features of the schedule: a feature that is faded out is missing in the version
        after it. See `check`.

        Raises:
            UserError: it has no vocabularies, which say what a missing value is.
        """
        if predictor.vocabularies is None:
            raise UserError(
                "fade: the model has no vocabularies, so what a missing value is isn't known; "
                "leave --fade out"
            )
        fading = Fading(predictor.encoder, predictor.scorer.inputs)
        for name in self._schedule.features:
            if name not in fading.features:
                _log.warning("fade: version %s has no feature %r", version, name)
        self._versions = {**self._versions, version: fading}

    def remove(self, version: str) -> None:
        """Forgets a version."""
        self._versions = {x: fading for x, fading in self._versions.items() if x != version}

    def check(self) -> None:
        """Checks that some version has each feature of the schedule.

        Raises:
            UserError: none has it.
        """
        self._check(self._schedule)

    def _check(self, schedule: FadeSchedule) -> None:
        known = dict.fromkeys(x for fading in self._versions.values() for x in fading.features)
        schedule.check_features([*known])

    def seen(self, request_id: str) -> dict[str, bool]:
        """Whether a request sees each feature of the schedule.

        Args:
            request_id: id of the request; empty for a random draw.
        """
        schedule = self._current()
        hashes = request_hashes([request_id or secrets.token_hex(8)], schedule.salt)
        drawn = covered(hashes, schedule.coverages(self._clock()))
        return {name: bool(rows[0]) for name, rows in drawn.items()}

    def apply(self, version: str, rows: Any, seen: Mapping[str, bool]) -> Any:
        """Rows without the features that a request doesn't see.

        Args:
            version: version that answers.
            rows: rows of the request: a frame, dicts, or examples.
            seen: see `seen`.
        """
        fading = self._versions.get(version)
        faded = [
            x for x, is_seen in seen.items() if not is_seen and fading and x in fading.features
        ]
        if not faded or fading is None:
            return rows
        if isinstance(rows, Examples):
            return fading.apply(rows, dict.fromkeys(faded, np.zeros(len(rows), bool)))
        if isinstance(rows, pl.DataFrame):
            kinds = rows.schema
            return rows.with_columns(
                pl.lit(None, kinds[name]).alias(name) for name in faded if name in kinds
            )
        return _without(rows, faded)

    def _current(self) -> FadeSchedule:
        """The schedule, as its file has it; it is looked at once a second."""
        now = self._clock()
        if abs(now - self._looked) < _SECONDS:
            return self._schedule
        self._looked = now
        try:
            changed = _changed(self._path)
            if changed != self._changed:
                self._changed = changed
                schedule = FadeSchedule.read(self._path)
                self._check(schedule)
                self._schedule = schedule
                _log.info("fade: the schedule has been read again")
        except UserError as error:
            _log.error("the schedule stays as it was: %s", error)
        return self._schedule


def _without(rows: Sequence[Mapping[str, Any]], faded: Sequence[str]) -> list[dict[str, Any]]:
    """Rows whose values of these features are None; one that a row lacks stays an error."""
    return [{x: None if x in faded else value for x, value in row.items()} for row in rows]


def _changed(path: Path) -> tuple[int, int, int]:
    """What changes with a file; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino

"""Features that a server fades: which requests see them now, by a schedule that may change."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dlrm_jax.data.arrays import Examples
from dlrm_jax.errors import UserError
from dlrm_jax.inference.fade_schedule import FadeSchedule
from dlrm_jax.inference.fading import covered, request_hashes
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
        self._wrong = ""  # with the file, as far as the log says it
        self._looking = threading.Lock()
        self._schedule = FadeSchedule.read(path)
        self._features: dict[str, list[str]] = {}  # by version

    def add(self, version: str, predictor: Predictor) -> None:
        """Adds a version of the model.

        It may lack features of the schedule: a feature that is faded out is missing in the version
        after it. See `check`.

        Raises:
            UserError: it has no vocabularies, which say what a missing value is.
        """
        if not predictor.takes_raw_rows:
            raise UserError(
                "fade: the model has no vocabularies, so what a missing value is isn't known; "
                "leave --fade out"
            )
        known = predictor.fading.features
        for name in self._schedule.features:
            if name not in known:
                _log.warning("fade: version %s has no feature %r", version, name)
        self._features = {**self._features, version: known}

    def remove(self, version: str) -> None:
        """Forgets a version."""
        self._features = {x: known for x, known in self._features.items() if x != version}

    def check(self) -> None:
        """Checks that some version has each feature of the schedule.

        Raises:
            UserError: none has it.
        """
        self._check(self._schedule)

    def _check(self, schedule: FadeSchedule) -> None:
        known = dict.fromkeys(x for features in self._features.values() for x in features)
        schedule.check_features([*known])

    def is_stale(self) -> bool:
        """Whether the file can't be read or isn't a schedule, so that an earlier one counts."""
        self._current()
        return bool(self._wrong)

    def seen(self, predictor: Predictor, request_id: str) -> dict[str, bool]:
        """Whether a request sees each feature of the schedule that a model has.

        Args:
            predictor: model that answers; its version may have another by now.
            request_id: id of the request; empty for a random draw.
        """
        schedule, known = self._current(), predictor.fading.features
        hashes = request_hashes([request_id or secrets.token_hex(8)], schedule.salt)
        drawn = covered(hashes, schedule.coverages(self._clock()))
        return {name: bool(rows[0]) for name, rows in drawn.items() if name in known}

    def apply(self, predictor: Predictor, examples: Examples, seen: Mapping[str, bool]) -> Examples:
        """Rows without the features that a request doesn't see.

        Args:
            predictor: model that answers.
            examples: rows of the request.
            seen: see `seen`.
        """
        rows = len(examples)
        of_rows = {x: np.full(rows, is_seen) for x, is_seen in seen.items()}
        return predictor.fading.apply(examples, of_rows)

    def _current(self) -> FadeSchedule:
        """The schedule, as its file has it; it is looked at once a second."""
        now = self._clock()
        if abs(now - self._looked) < _SECONDS:
            return self._schedule
        if self._looking.acquire(blocking=False):
            try:
                self._looked = now
                self._look()
            finally:
                self._looking.release()
        return self._schedule

    def _look(self) -> None:
        """Reads the file if it has changed; one that is wrong until it is right.

        The cause may be elsewhere: who may read it, a disk, or that no version has a feature yet.
        """
        changed = _changed(self._path)
        if changed == self._changed and not self._wrong:
            return
        self._changed = changed
        try:
            schedule = FadeSchedule.read(self._path)
            self._check(schedule)
        except UserError as error:
            if (wrong := str(error)) != self._wrong:
                _log.error("the schedule stays as it was: %s", wrong)
            self._wrong = wrong
            return
        self._schedule, self._wrong = schedule, ""
        _log.info("fade: the schedule has been read again")


def _changed(path: Path) -> tuple[int, int, int]:
    """What changes with a file; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino

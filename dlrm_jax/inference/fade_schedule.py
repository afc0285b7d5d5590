"""The schedule of features that are faded: the share of requests that still see each, over time.

A feature that is to go is taken from few requests first, and from more and more of them, so that
metrics tell what it costs while it can be given back (arXiv 2605.00324).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json
from dlrm_jax.json_objects import without_repeats

_EXAMPLE = '{"features": {"shop": [["2026-11-01T00:00:00Z", 1], ["2026-11-15T00:00:00Z", 0]]}}'

_Instant = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
_Coverage = Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclasses.dataclass(frozen=True)
class FadeSchedule:
    """The coverage of features over time.

    Attributes:
        features: points of each feature: seconds since 1970, ascending, and the share of requests
            that see it then, from 0 to 1. Between two points the share changes evenly; before the
            first and after the last it stays.
        salt: text that the draws depend on; another one draws other requests.
    """

    features: Mapping[str, tuple[tuple[float, float], ...]]
    salt: str = ""

    @classmethod
    def read(cls, path: Path) -> FadeSchedule:
        """Reads a schedule from a JSON file.

        Raises:
            UserError: it can't be read, or isn't a schedule; the message names feature and point.
        """
        try:
            if path.exists() and not path.is_file():  # a pipe would wait for ever
                raise OSError("expected a file")
            fields = read_json(path, object_pairs_hook=without_repeats)
            json.dumps(fields, ensure_ascii=False).encode()  # no halves of characters
            found = msgspec.convert(fields, _File)
        except OSError as error:
            raise UserError(f"fade: cannot read {path}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"fade: {path}: expected JSON such as {_EXAMPLE}: {error}") from error
        if not found.features:
            raise UserError(f"fade: {path}: features: expected at least one, got none")
        points = {name: _points(path, name, given) for name, given in found.features.items()}
        return cls(points, found.salt)

    def check_features(self, known: list[str]) -> None:
        """Checks that the model has all features.

        Args:
            known: names of its features.

        Raises:
            UserError: it doesn't have one.
        """
        for name in self.features:
            if name not in known:
                raise UserError(
                    f"fade: features: expected features of the model, {', '.join(known)}, got "
                    f"{name!r}"
                )

    def coverages(self, seconds: float) -> dict[str, float]:
        """The share of requests that see each feature.

        Args:
            seconds: time, in seconds since 1970.
        """
        found = {}
        for name, points in self.features.items():
            times, shares = zip(*points, strict=True)
            found[name] = float(np.interp(seconds, times, shares))
        return found

    @property
    def instants(self) -> list[float]:
        """The times of all points, ascending, in seconds since 1970."""
        return sorted({seconds for points in self.features.values() for seconds, _ in points})


class _File(msgspec.Struct, forbid_unknown_fields=True):
    features: dict[str, list[Any]]
    salt: str = ""


def _points(path: Path, name: str, given: list[Any]) -> tuple[tuple[float, float], ...]:
    where = f"fade: {path}: feature {name!r}"
    points: list[tuple[float, float]] = []
    for number, point in enumerate(given):
        try:
            instant, coverage = msgspec.convert(point, tuple[_Instant, _Coverage])
            instant = instant.astimezone(datetime.UTC)  # there may be no such year
        except (msgspec.ValidationError, OverflowError) as error:
            raise UserError(
                f"{where}, point {number} (from 0): expected a time with its zone and a share from "
                f'0 to 1, such as ["2026-11-15T00:00:00Z", 0.5], got {_shown(point)}: {error}'
            ) from error
        if points and instant.timestamp() <= points[-1][0]:
            raise UserError(
                f"{where}, point {number} (from 0): expected a later time than that of the point "
                f"before, got {_shown(point)}"
            )
        points.append((instant.timestamp(), coverage))
    if not points:
        raise UserError(f"{where}: expected at least one point, got none")
    return tuple(points)


def _shown(point: Any) -> str:
    text = json.dumps(point, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= 80 else f"{text[:80]}…"

"""Ways to give ids rows, each trained on the days of a log as a stream."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int32, UInt64

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.data.preprocessing.raw_ids import RawIds, ids_of
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.stream.source import Segment
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.record import read_record

_OWNERS = ("user_id", "item_id")  # columns whose tables are compared; last_viewed is of items, too
_OTHER_ROWS = 1000  # of the other columns, which have few values and are hashed


class Days:
    """A stream whose segments are days in memory.

    Args:
        days: rows of each day.
        consumed: ignored; nothing changes.
    """

    def __init__(self, days: Sequence[pl.DataFrame], consumed: tuple[Consumed, ...] = ()):
        self._days = days
        self.consumed: tuple[Consumed, ...] = ()

    def next(self, after: Position | None) -> Segment | None:
        """The day behind a position."""
        day = int(after.segment) + 1 if after else 0
        if day == len(self._days):
            return None
        frame = self._days[day]
        return Segment(f"day {day}", Consumed(f"{day:04d}", len(frame), 0, ""), frame)


class Vocabularies:
    """Rows of vocabularies: one for each day, in which an id keeps its row.

    An id that isn't in the vocabulary of its day reads row 0.

    Args:
        hashed: encoder of the other columns.
        schema: meaning of the columns.
        born: ids and the first day of each, by owner of a table.
        known_until: last day whose ids the vocabulary of a day has.
        examples: examples of a day.
    """

    def __init__(
        self,
        hashed: HashedRows,
        schema: Schema,
        born: Mapping[str, tuple[UInt64[np.ndarray, " n"], np.ndarray]],
        known_until: Callable[[int], int],
        examples: int,
    ):
        owners = np.repeat([schema.categorical[i] for i in schema.owners], schema.lengths)
        self._places = {name: np.flatnonzero(owners == name) for name in born}
        self._hashed, self._born = hashed, born
        # In the order of their days, so that the ids of a day's vocabulary have the first rows.
        self._rows = {
            name: 1 + np.argsort(np.argsort(days, kind="stable"), kind="stable")
            for name, (_, days) in born.items()
        }
        self._known_until, self._examples, self._seen = known_until, examples, 0

    def __call__(self, raw: RawIds) -> Int32[np.ndarray, "N C"]:
        """The rows of the ids of a batch, which is of one day; batches come in order."""
        rows = self._hashed(raw)
        last = self._known_until(self._seen // self._examples)
        self._seen += len(raw.ids)
        for name, (ids, first_day) in self._born.items():
            places = self._places[name]
            at = np.minimum(np.searchsorted(ids, raw.ids[:, places]), len(ids) - 1)
            known = (ids[at] == raw.ids[:, places]) & (first_day[at] <= last)
            found = np.where(known, self._rows[name][at], 0)
            rows[:, places] = np.where(raw.present[:, places], found, ABSENT)
        return rows


def born(days: Sequence[pl.DataFrame], column: str) -> tuple[UInt64[np.ndarray, " n"], np.ndarray]:
    """The different ids of a column, ascending, and the first day of each."""
    of_days = [np.unique(ids_of(day[column])) for day in days]
    numbers = np.repeat(np.arange(len(days)), [len(ids) for ids in of_days])
    ids, first = np.unique(np.concatenate(of_days), return_index=True)
    return ids, numbers[first]  # the first of equal ids is that of the first day


def entropies(
    days: Sequence[pl.DataFrame], probabilities: Sequence[np.ndarray]
) -> Float64[np.ndarray, " d"]:
    """The normalized entropy of each day's predictions."""
    found = []
    for day, p in zip(days, probabilities, strict=True):
        label = day["clicked"].to_numpy()
        rate = label.mean()
        loss = -np.mean(np.where(label, np.log(p), np.log1p(-p)))
        found.append(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))
    return np.array(found)


@dataclasses.dataclass(frozen=True)
class Study:
    """A log, and what is trained on it.

    Attributes:
        schema: meaning of the columns.
        days: rows of each day.
        rows: rows of the tables of users and items.
        policy: rules of dynamic ids.
        batch_size: examples of a batch.
        learning_rate: learning rate.
        seed: seed.
    """

    schema: Schema
    days: Sequence[pl.DataFrame]
    rows: Mapping[str, int]
    policy: str
    batch_size: int
    learning_rate: float
    seed: int

    @functools.cached_property
    def born(self) -> Mapping[str, tuple[UInt64[np.ndarray, " n"], np.ndarray]]:
        """Ids and first days of users and items."""
        return {name: born(self.days, name) for name in _OWNERS}

    def rows_of(self, way: str) -> dict[str, int]:
        """The rows of the tables of users and items."""
        if way in ("hashed", "dynamic"):
            return dict(self.rows)
        last = 0 if way == "first day" else len(self.days)
        return {name: 1 + int(np.sum(days <= last)) for name, (_, days) in self.born.items()}

    def train(self, way: str, mesh: Any, workdir: Path) -> Float64[np.ndarray, " d"]:
        """Trains one way; the normalized entropy of each day before it is trained on."""
        schema, examples = self.schema, len(self.days[0])
        own = self.rows_of(way)
        owners = [schema.categorical[i] for i in schema.owners]
        dynamic = way in ("dynamic", "unbounded")
        rows = tuple(own.get(name, _OTHER_ROWS) for name in owners)
        given = Config(
            table_rows=rows,
            embedding_dim=16,
            bottom_mlp=(32, 16),
            top_mlp=(64, 32, 1),
            batch_size=self.batch_size,
            optimizer="rowwise_adagrad",
            learning_rate=self.learning_rate,
            seed=self.seed,
            dynamic_ids=tuple(
                f"{name}={count}:{self.policy}" if way == "dynamic" else f"{name}={count}"
                for name, count in own.items()
                if dynamic
            ),
        )
        config = for_schema(given, schema)
        encoder = None
        if "day" in way:
            hashed = HashedRows(schema, config.table_rows)
            until = (lambda day: 0) if way == "first day" else (lambda day: max(day - 1, 0))
            encoder = Vocabularies(hashed, schema, self.born, until, examples)
        options = StreamOptions(workdir, 0.01, 0, window=examples)
        learner = make_learner(config, mesh)
        source = functools.partial(Days, self.days)
        run_stream(config, schema, source, learner, options, encoder=encoder)
        lines = read_record(workdir / "metrics.jsonl")
        return np.array([x["normalized_entropy"] for x in lines if x["split"] == "prequential"])

"""Compares ways to give the ids of a drifting log rows: quality at the same memory, day by day.

    python -m experiments.living_ids --days=30 --examples=50000

A generated log of some days, whose items are born and die (`dlrm_jax generate --format=log`), is
trained on as a stream: each example is predicted before it is trained on. Users and items have
tables of a given number of rows; only how an id gets its row differs:

- ``hashed``: by a hash, so that ids share rows;
- ``dynamic``: by dynamic ids (`dlrm_jax.dynamic_ids`), in the same number of rows;
- ``first day``: by a vocabulary of the first day, the others share a row;
- ``each day``: by a vocabulary that is made anew before each day, of all ids before it;
- ``unbounded``: by dynamic ids with rows for all.

It prints the normalized entropy of each day from the second on, in steps of five days, and for each
way the mean over these days, rows, and the share of the gap between hashed and unbounded that is
closed; the same is written to the workdir as ``living_ids.json``. The best possible is that of the
log's own click probabilities. Initial values are within ±1/√rows, so ways with
other numbers of rows start from others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from absl import flags
from jaxtyping import Float64, Int32, UInt64

from dlrm_jax.cli.flags import FLAGS, chosen_workdir, define_workdir, own_flags
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.generated.click_log import SCHEMA, ClickLog
from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.data.preprocessing.raw_ids import RawIds, ids_of
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_json
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import for_schema
from dlrm_jax.stream.source import Segment
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.record import read_record, versions

_OWNERS = ("user_id", "item_id")  # columns whose tables are compared; last_viewed is of items, too
_OTHER_ROWS = 1000  # of the other columns, which have few values and are hashed
_WAYS = ("hashed", "dynamic", "first day", "each day", "unbounded")

define_workdir("Directory of living_ids.json and of the runs", "runs/ids")
flags.DEFINE_integer("days", 30, "Days of the log; such as 10.", 3)
flags.DEFINE_integer("examples", 50_000, "Impressions of each day; such as 20000.", 1000)
flags.DEFINE_integer("users", 20_000, "Users of the log; such as 5000.", 10)
flags.DEFINE_integer("items", 2000, "Items of the log at a time; such as 500.", 10)
flags.DEFINE_float("drift", 0.05, "Share of the items that are new on each day.", 0, 1)
flags.DEFINE_integer("user_rows", 10_000, "Rows of the users' table; such as 5000.", 2)
flags.DEFINE_integer("item_rows", 2500, "Rows of the items' table; such as 1000.", 2)
flags.DEFINE_string("policy", "evict=lru", "Rules of the dynamic ids, after colons as in train.")
flags.DEFINE_integer("batch_size", 500, "Examples of a batch; a day has whole ones.", 1)
flags.DEFINE_float("learning_rate", 0.05, "Learning rate.", 0)
flags.DEFINE_integer("seed", 0, "Seed of the log and the models.", 0)


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


def main() -> None:
    """Trains all ways and prints the table."""
    workdir = chosen_workdir("living_ids")
    if workdir.exists() and any(workdir.iterdir()):  # neither days nor vocabularies can resume
        raise UserError(
            f"--workdir: expected a new or empty directory, as a study starts anew, got {workdir}; "
            f"remove it, or give another one"
        )
    if FLAGS.examples < 5 * FLAGS.batch_size:
        raise UserError(
            f"--examples: expected at least 5 batches of --batch_size={FLAGS.batch_size} a day, "
            f"{5 * FLAGS.batch_size:,}, got {FLAGS.examples:,}"
        )
    mesh = start("1x1", 1)
    examples = FLAGS.examples - FLAGS.examples % (5 * FLAGS.batch_size)
    log = ClickLog(FLAGS.users, FLAGS.items, FLAGS.drift, FLAGS.days, FLAGS.seed)
    days = [each.frame for each in log.each_day(examples)]
    best = entropies(days, [day["click_probability"].to_numpy() for day in days])
    schema = Schema.from_fields(SCHEMA)
    study = Study(
        schema,
        days,
        {"user_id": FLAGS.user_rows, "item_id": FLAGS.item_rows},
        FLAGS.policy,
        FLAGS.batch_size,
        FLAGS.learning_rate,
        FLAGS.seed,
    )
    found = {way: study.train(way, mesh, workdir / way.replace(" ", "_")) for way in _WAYS}
    means = {way: float(of_days[1:].mean()) for way, of_days in found.items()}
    gap = means["hashed"] - means["unbounded"]
    shown = [*range(1, FLAGS.days, 5)]
    rows = []
    for way, of_days in found.items():
        own = study.rows_of(way)
        closed = (means["hashed"] - means[way]) / gap
        rows.append(
            [way, *(f"{x:,}" for x in own.values())]
            + [f"{of_days[day]:.4f}" for day in shown]
            + [f"{means[way]:.4f}", f"{closed:.0%}"]
        )
    rows.append(
        ["best possible", "", ""]
        + [f"{best[day]:.4f}" for day in shown]
        + [f"{best[1:].mean():.4f}", ""]
    )
    head = ["rows of", "users", "items", *(f"day {day + 1}" for day in shown), "mean", "gap closed"]
    print(text_table(head, rows))
    result = {
        "flags": {x.name: x.value for x in own_flags()},
        "normalized_entropy": {way: of_days.tolist() for way, of_days in found.items()},
        "best": best.tolist(),
        "versions": versions(),
    }
    write_json(workdir / "living_ids.json", result)


if __name__ == "__main__":
    run(main)

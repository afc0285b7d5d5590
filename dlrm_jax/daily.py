"""Day after day: train on a day, test on the next one, and compare with a model left as it was.

    WORKDIR/days.json            settings, and a line for each day that is done
    WORKDIR/data/000-NAME/       the day, prepared, with the next one for test
    WORKDIR/runs/000-NAME/       the run that trained on it

Each day's vocabularies continue those of the day before, and so does its run, see `run_continued`.
Whatever ends the loop, it goes on at the day where it was: preparation and run resume themselves.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from dlrm_jax.config import Config
from dlrm_jax.console import once
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options as Preparation
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.row_counts import count_rows
from dlrm_jax.data.preprocessing.unseen_values import UnseenValues
from dlrm_jax.data.special_ids import MISSING
from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json, write_text
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.run import run
from dlrm_jax.run_data import load_data
from dlrm_jax.run_start import Options
from dlrm_jax.saved_config import VERSION, saved_fields
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import check_shared
from dlrm_jax.training.evaluation import evaluate
from dlrm_jax.training.measures import Measures, measures_of
from dlrm_jax.training.metrics import METRICS
from dlrm_jax.training.record import to_json

JOURNAL = "days.json"

MODELS = ("updated", "not_updated")
"""The models that are compared."""

_ROWS = 1 << 18  # whose ids are counted at a time

Entry = dict[str, Any]
"""What `days.json` says of a day."""


class DayLog(NamedTuple):
    """The log of a day, and the name that tables and pictures give it."""

    name: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Daily:
    """The loop over days.

    Attributes:
        logs: logs of the days, in order; the last one is for test alone.
        preparation: options of the data.
        config: config of every day's run.
        mesh: mesh of every day's run.
        workdir: directory of everything, locked.
        say: function that shows a line of text to the user.
    """

    logs: Sequence[DayLog]
    preparation: Preparation
    config: Config
    mesh: Mesh
    workdir: Path
    say: Callable[[str], None] = lambda text: None

    def __call__(self) -> Iterator[list[Entry]]:
        """Yields the entries of all days that are done: first, and after each further day.

        Raises:
            UserError: there are fewer than two days, the workdir is of other logs or settings, or
                a day can't be prepared or trained on. A day with fewer rows than a batch is named
                before another one trains.
        """
        if len(self.logs) < 2:
            raise UserError(
                f"days: expected logs of two days or more, as each day is tested on the next one, "
                f"got {len(self.logs)}"
            )
        done = self._done()
        self._check_rows(len(done))
        yield done
        first: Predictor | None = None
        say = once(self.say)  # what holds for each day, such as that it has no validation
        for number in range(len(done), len(self.logs) - 1):
            first, entry = self._day(number, first, say)
            done.append(entry)
            write_text(self.workdir / JOURNAL, to_json(self._settings | {"days": done}, indent=1))
            yield done

    def _check_rows(self, done: int) -> None:
        """Checks that the days that aren't done have the rows of a batch, the last one a row."""
        size, last = self.config.batch_size, len(self.logs) - 1
        for number in range(done, last + 1) if done < last else ():
            name, path = self.logs[number]
            rows = count_rows(path, self.preparation, size)
            if rows >= size:
                continue
            found = f"day {name} has {rows:,} rows, and a batch {size:,}"
            join = "join it with the day before it or after it in one file"
            if number < last:
                raise UserError(f"{found}: {path}; {join}, or make the batch smaller")
            if not rows:
                raise UserError(f"day {name} has no rows: {path}; leave it out, or {join}")
            self.say(f"{found}: the loop can't go on after it; {join}, before it is tested on")

    def _day(
        self, number: int, first: Predictor | None, say: Callable[[str], None]
    ) -> tuple[Predictor, Entry]:
        """Prepares a day, trains on it, and tests it and the first day's model on the next one."""
        today, tomorrow = self.logs[number : number + 2]
        name = self._name(number)
        self.say(f"day {today.name}: train on it, test on {tomorrow.name}")
        before = self.workdir / "runs" / self._name(number - 1) if number else None
        begun = time.perf_counter()
        prepared = self.workdir / "data" / name
        metadata = preprocess(
            [today.path],
            prepared,
            self.preparation,
            [tomorrow.path],
            before / "preprocessing" if before else None,
        )
        seconds = {"prepare": time.perf_counter() - begun}
        config, data = load_data(self.config, prepared)
        check_shared(config, data)
        learner = make_learner(config, self.mesh)
        workdir = self.workdir / "runs" / name
        outcome = run(config, data, learner, Options(workdir, continue_from=before), say=say)
        del learner
        seconds["train"] = time.perf_counter() - begun - seconds["prepare"]
        updated = outcome.summary["test"]
        first = first or self._first_model()
        if number:
            measures = measures_of(config, data)
            not_updated, unknown = self._tested(first, tomorrow.path, data.test, measures)
        else:
            not_updated, unknown = updated, _unknown(metadata, data.test)
        return first, {
            "day": today.name,
            "tested_on": tomorrow.name,
            "rows": len(data.train),
            "test_rows": len(data.test),
            "new_ids": _new(Metadata.read(before / "preprocessing"), data.train)
            if before
            else None,
            "unknown_ids": {"updated": _unknown(metadata, data.test), "not_updated": unknown},
            "updated": updated,
            "day_before": outcome.summary.get("before", {}).get("test"),
            "not_updated": not_updated,
            "steps": outcome.summary["steps"],
            "seconds": {key: round(value, 1) for key, value in seconds.items()},
        }

    def _first_model(self) -> Predictor:
        model = self.config.model if ":" in self.config.model else None
        size = self.config.evaluation_batch_size
        return Predictor.load(self.workdir / "runs" / self._name(0), self.mesh, size, model)

    def _tested(
        self, first: Predictor, log: Path, test: Split, measures: Measures
    ) -> tuple[dict[str, Any], float]:
        """The metrics of the first day's model, which has its own vocabularies, on a log.

        Args:
            first: the model.
            log: the log.
            test: the same rows, prepared by the updated model's vocabularies: they are measured,
                so that groups by a feature are the same for all models.
            measures: metrics of the updated model's run.
        """
        unseen, parts, start = first.encoder.unseen_values(), [], 0
        for chunk in first.encoder.files([log]):
            ids = np.asarray(chunk.examples.ids)
            unseen.add(ids)
            rows = test.take(np.arange(start, start + len(ids)))
            parts.append(dataclasses.replace(rows, dense=chunk.examples.dense, ids=ids))
            start += len(ids)
        split, size = Split(tuple(parts)), first.batch_size
        assert len(split) == len(test)
        model = first.learner, first.compiled, first.state
        found = evaluate(*model, split, size, lambda logits, _: measures(logits, test))
        return found, unseen.share or 0.0

    @property
    def last_run(self) -> Path:
        """The workdir of the run of the last day that trains."""
        return self.workdir / "runs" / self._name(len(self.logs) - 2)

    def _name(self, number: int) -> str:
        return f"{number:03d}-{self.logs[number].name}"

    @property
    def _settings(self) -> dict[str, Any]:
        """What a loop that goes on must have had from its beginning."""
        return {
            "config_version": VERSION,
            "config": json.loads(json.dumps(self.config.identity())),
            "preparation": self.preparation.to_json(),
            "logs": [[each.name, each.path.stat().st_size] for each in self.logs],
        }

    def _done(self) -> list[Entry]:
        """The entries of days that are done.

        Raises:
            UserError: they are of other settings or logs; logs may have been added at the end.
        """
        path = self.workdir / JOURNAL
        if not path.exists():
            return []
        try:
            found = read_json(path)
            there = found | {"config": saved_fields(found["config"])}
            done, logs = there["days"], [(str(name), int(size)) for name, size in there["logs"]]
            for kind in ("config", "preparation"):
                if missing := self._settings[kind].keys() - there[kind].keys():
                    raise ValueError(f"its {kind} has no {min(missing)}")
            if not all(map(_is_entry, done)):
                raise ValueError("a day lacks a part, or has one of another type")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{path} is damaged, or isn't of a loop over days: {why}; give another workdir"
            ) from error
        here, end = self._settings, "give the same, or another workdir"
        for kind in ("config", "preparation"):
            for name, value in here[kind].items():
                if there[kind].get(name) != value:
                    raise UserError(
                        f"{path}: the loop over days began with {name} {there[kind].get(name)!r}, "
                        f"got {value!r}; {end}"
                    )
        for was, now in zip(logs[: len(done) + 1], here["logs"], strict=False):
            if was != tuple(now):
                raise UserError(
                    f"{path}: the loop over days has used the log {was[0]} of {was[1]:,} bytes, "
                    f"got {now[0]} of {now[1]:,} bytes in its place; {end}"
                )
        if len(self.logs) <= len(done):
            raise UserError(
                f"{path}: the loop over days has used {len(done) + 1} logs, got {len(self.logs)}; "
                f"give them all, and new ones at the end"
            )
        return done


def _is_entry(found: Any) -> bool:
    """Whether what the journal says of a day has what tables and pictures show."""

    def are(values: Any, kind: Any, *names: str) -> bool:
        return isinstance(values, dict) and all(isinstance(values.get(x, ""), kind) for x in names)

    return (
        are(found, int, "rows", "test_rows")
        and are(found, float | int | None, "new_ids")
        and all(isinstance(found.get(x), str) for x in ("day", "tested_on"))
        and are(found.get("unknown_ids"), float | int, *MODELS)
        and all(are(found.get(x), float | int | None, *METRICS) for x in MODELS)
    )


def _unknown(metadata: Metadata, split: Split) -> float:
    """The share of the values of a split that its vocabularies don't have."""
    unseen = UnseenValues.of(metadata)
    for ids in _each(split):
        unseen.add(ids)
    return unseen.share or 0.0


def _new(before: Metadata, split: Split) -> float:
    """The share of the values of a split that earlier vocabularies hadn't a row for."""
    limits = np.repeat(before.table_rows, before.bag_lengths)
    new = present = 0
    for ids in _each(split):
        new += int((ids >= limits).sum())
        present += int(((ids >= 0) & (ids != MISSING)).sum())
    return new / present if present else 0.0


def _each(split: Split) -> Iterator[np.ndarray]:
    for start in range(0, len(split), _ROWS):
        for day in split[start : start + _ROWS].days:
            yield np.asarray(day.ids)

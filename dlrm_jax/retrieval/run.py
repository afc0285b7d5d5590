"""A run of two towers: start or resume, train, evaluate, write vectors and index."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.log_order import Log, log_of
from dlrm_jax.data.metadata import of_columns
from dlrm_jax.files import write_text
from dlrm_jax.processes import on_process_0
from dlrm_jax.retrieval import files
from dlrm_jax.retrieval.batches import RetrievalBatches
from dlrm_jax.retrieval.evaluation import Questions, VectorsOf, evaluate
from dlrm_jax.retrieval.log_rows import last_rows, take
from dlrm_jax.retrieval.ranking import Ranking
from dlrm_jax.retrieval.settings import saved_settings
from dlrm_jax.retrieval.step import make_retrieval_step
from dlrm_jax.retrieval.task import Task
from dlrm_jax.retrieval.vectors import Encoder
from dlrm_jax.run_start import check_unvalidated, describe_run
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.loop import Intervals, Metrics, train
from dlrm_jax.training.record import Record, owned, to_json

_MAY_CHANGE = ("recall_at", "exclude", "user_id")
"""Settings that may differ when a run is resumed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        summary: metrics of each split, of the model and of the ranking by popularity, as in
            ``summary.json``.
        items: vectors of all items, in the order of `Task.items`.
        retrieval: ranking of the run.
    """

    summary: dict[str, Any]
    items: Float32[np.ndarray, "I d"]
    retrieval: Retrieval


class Retrieval:
    """Two towers on their mesh: vectors, and recall among all items.

    Args:
        task: task of the run.
        config: config with the tables of the task, see `model.config_of`.
        learner: learner of the config.
    """

    def __init__(self, task: Task, config: Config, learner: Learner):
        self.task, self._learner = task, learner
        size = config.evaluation_batch_size
        self._user = Encoder(learner, "user", task.user, task.item, size)
        self._item = Encoder(learner, "item", task.user, task.item, size)
        self._ranking = Ranking(learner.mesh, size)

    def users(self, state: TrainState) -> VectorsOf:
        """A function that gives the vectors of the users of examples."""
        user = self.task.user
        return lambda rows: self._user(state, user.dense_of(rows), user.ids(rows))

    def items(self, state: TrainState) -> Float32[np.ndarray, "I d"]:
        """The vectors of all items."""
        return self._item(state, self.task.items.dense, self.task.items.ids)

    def metrics(self, state: TrainState, questions: Questions) -> dict[str, Any]:
        """Recall and NDCG of a state."""
        return self.rank(questions, self.users(state), self.items(state))

    def popularity(self, questions: Questions) -> dict[str, Any]:
        """Recall and NDCG of a ranking by the items' positive training rows."""
        counts = self.task.items.positives.astype(np.float32)[:, None]
        return self.rank(questions, _ones, counts)

    def rank(
        self, questions: Questions, users: VectorsOf, items: Float32[np.ndarray, "I d"]
    ) -> dict[str, Any]:
        """Recall and NDCG of any vectors."""
        task = self.task
        return evaluate(questions, self._ranking, users, items, task.known, task.settings.recall_at)


def _ones(examples: Examples) -> Float32[np.ndarray, "n 1"]:
    return np.ones((len(examples), 1), np.float32)


def run(
    task: Task,
    config: Config,
    learner: Learner,
    workdir: Path,
    index: files.Index,
    say: Callable[[str], None],
) -> Outcome:
    """Start or resume, train, evaluate, write files, in this order.

    Args:
        task: task of the run.
        config: config with the tables of the task, see `model.config_of`.
        learner: learner of the config.
        workdir: directory of metrics, checkpoints and vectors, from which a run resumes.
        index: index to write beside the vectors.
        say: function that shows a line of text to the user.

    Raises:
        UserError: see `RetrievalBatches`, `train` and `Checkpoints`; or a file that a new run would
            write is there already.
        Interrupted: a signal came; the state was saved.
    """
    settings, data = task.settings, task.data
    batches = RetrievalBatches(task, config, learner.axes.device_count)
    retrieval, log = Retrieval(task, config, learner), log_of(data)
    if task.user.key is not None and not log.is_ordered:
        say(
            f"{files.USERS}: {data.directory} was prepared by an earlier version, which kept the "
            f"rows of a day by split: of a user's rows of one day, those of test count as the last "
            f"ones, then those of validation; prepare the data again for the order of the log"
        )
    fixed = {x: y for x, y in dataclasses.asdict(settings).items() if x not in _MAY_CHANGE}
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        {"data": of_columns(data.fingerprint), "retrieval": fixed, **config.identity()},
        config.keep_checkpoints,
        f"recall@{settings.recall_at[0]}",
        [of_columns(earlier) for earlier in data.earlier_fingerprints],
        {"retrieval": saved_settings},
    )
    if not checkpoints.steps():
        if "validation" not in task.questions:
            # What else would need validation isn't read here, and a preset may have it.
            check_unvalidated(Config(validation_examples=config.validation_examples))
        on_process_0(lambda: files.check_free(workdir))
    with contextlib.ExitStack() as opened:
        opened.enter_context(owned(workdir))
        checkpoints.prepare()
        if checkpoints.steps():
            state, resumed_from = checkpoints.restore_latest(learner)
            trained_before = checkpoints.metadata(resumed_from)
            checkpoints.delete_superseded()  # the run may have been killed before it did
            say(f"resuming from step {resumed_from} in {checkpoints.directory}")
        else:
            state, resumed_from, trained_before = learner.init(config.seed), 0, {}
        record = opened.enter_context(Record(workdir / "metrics.jsonl", resumed_from))
        notes = describe_run(config, learner)
        # For a run that has one step left, which has no speed, or none.
        speed_before = trained_before.get("examples_per_second")

        def keep(
            state: TrainState, validation: Metrics | None, due: bool, speed: float | None
        ) -> bool:
            if due or checkpoints.improves(validation):
                record.flush()
                known = {**notes, "examples_per_second": speed or speed_before}
                checkpoints.save(learner, state, known, validation)
            return True

        sample = None
        if "validation" in task.questions:
            sample = task.questions["validation"].first(config.validation_examples)
        total = config.steps or config.epochs * batches.steps_per_epoch
        if resumed_from >= total:
            say(f"the run has {resumed_from} steps of {total} already, and isn't trained further")
        trained = train(
            learner,
            make_retrieval_step(learner, config.batch_size),
            state,
            batches,
            total,
            Intervals(
                config.log_every,
                config.eval_every,
                config.checkpoint_every,
                config.check_copies_every,
            ),
            validate=None if sample is None else lambda state: retrieval.metrics(state, sample),
            keep=keep,
            record=record,
        )
        state, speed = trained.state, trained.examples_per_second or speed_before
        best = checkpoints.best()
        steps = int(state.step)
        if best not in (None, steps):
            del trained, state  # so that there is room for another one
            state, _ = checkpoints.restore_best(learner)
        results = {
            name: {
                "model": retrieval.metrics(state, questions),
                "popularity": retrieval.popularity(questions),
            }
            for name, questions in task.questions.items()
        }
        summary = {
            "steps": steps,
            "best_step": best,
            "resumed_from": resumed_from or None,
            "items": len(task.items),
            "train_examples": len(task.train),
            "examples_per_second": speed,
            **results,
        }
        vectors = retrieval.items(state)
        _write_files(task, log, retrieval.users(state), vectors, workdir, index)
        write_text(workdir / files.SUMMARY, to_json(summary, indent=1))
        return Outcome(summary, vectors, retrieval)


def _write_files(
    task: Task,
    log: Log,
    users: VectorsOf,
    items: Float32[np.ndarray, "I d"],
    workdir: Path,
    index: files.Index,
) -> None:
    """Writes the vectors of users and items, and the index."""
    of_items = files.frame(task.data, task.values, task.item, task.items.ids, items)
    counts = {"rows": task.items.rows, "positives": task.items.positives}
    of_items = of_items.with_columns(**{x: pl.Series(y) for x, y in counts.items()})
    files.write_vectors(workdir / files.ITEMS, [of_items])
    files.write_array(workdir / files.ARRAY, items)
    if index == "usearch":
        files.write_index(workdir / files.USEARCH, items)
    if task.user.key is not None:
        files.write_vectors(workdir / files.USERS, _user_frames(task, log, users))


def _user_frames(task: Task, log: Log, users: VectorsOf) -> Iterator[pl.DataFrame]:
    """Each user as in its last row of the log."""
    side = task.user
    feature = side.key_feature
    assert feature is not None
    last = last_rows(log, side, task.data.table_rows[feature])
    known = task.values.known(feature)
    if known is not None:
        last = last[known]
    for rows in take(log.rows, np.sort(last[last >= 0])):
        yield files.frame(task.data, task.values, side, side.ids(rows), users(rows))

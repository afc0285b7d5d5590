"""A run from data and learner to a trained model: start or resume, train, evaluate, write files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.backend import describe_devices
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.batches import steps_per_epoch
from dlrm_jax.data.sample import evenly_spaced
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.embedding.kernel_dispatch import check_processes
from dlrm_jax.processes import is_process_0
from dlrm_jax.run_continued import Continued, ids_before, noted_continuation, shift_before
from dlrm_jax.run_data import is_new
from dlrm_jax.run_start import (
    Options,
    check_splits,
    check_start,
    checkpoints_of,
    config_text,
    describe_run,
    first_state,
)
from dlrm_jax.run_training import Say, Training, first_step, make_step
from dlrm_jax.saved_config import VERSION_KEY, is_ours
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.evaluation import evaluate
from dlrm_jax.training.host_memory import check_host_tables
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.loop import Metrics
from dlrm_jax.training.measures import Measures, measures_of
from dlrm_jax.training.record import Record, owned, to_json, write_result
from dlrm_jax.training.resized_tables import is_resized
from dlrm_jax.training.sampling import correction_of
from dlrm_jax.training.standby import ReadAhead, stand_by
from dlrm_jax.training.step import make_predict
from dlrm_jax.training.stopping import evaluations_of
from dlrm_jax.training.warm_start_checks import noted_start

_TRAIN_EXAMPLES = 1 << 16
"""Training examples that are evaluated if there are none for validation."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        state: state of the best checkpoint by validation; the last one if no checkpoint was
            validated or there is no workdir; or the one that was evaluated.
        summary: metrics of each split, steps, speed, as in ``summary.json``, or ``evaluation.json``
            of a run that trains nothing.
        noted: metadata that a checkpoint of the state has of its evaluations.
        id_maps: maps of the state; None without dynamic ids.
    """

    state: TrainState
    summary: dict[str, Any]
    noted: dict[str, Any] = dataclasses.field(default_factory=dict)
    id_maps: IdMaps | None = None


def run(
    config: Config,
    data: Dataset,
    learner: Learner,
    options: Options,
    say: Say = lambda text: None,
) -> Outcome:
    """Start or resume, train, evaluate, in this order.

    Args:
        config: config of the run, with the tables of the data.
        data: data set, as `load_data` gives it.
        learner: learner of the config.
        options: start and files of the run.
        say: function that shows a line of text to the user.

    Raises:
        UserError: see `check_splits`, `train`, `Checkpoints` and `warm_start`.
        Interrupted: a signal came; the state was saved if there is a workdir.
    """
    inherited = bool(options.continue_from or options.evaluate_only)
    new = is_new(options.workdir)
    absent = check_splits(config, data, inherited, new)
    if new:
        check_start(config, options)
    if not options.evaluate_only:  # before there are files of the run
        steps_per_epoch(data.train, config.batch_size)
    if absent:
        say(f"no examples for {' and '.join(absent)}: there are no metrics of them")
    if correction := correction_of(config, data.kept_negatives.get("train", 1.0)):
        say(correction)
    check_host_tables(
        config,
        {
            "continue_from": bool(options.continue_from),
            "warm_start": bool(options.warm_start),
            "journal_seconds": bool(options.journal_seconds),
            "standby": options.standby,
        },
    )
    check_processes(learner.mesh, learner.kernels_in_use)
    with contextlib.ExitStack() as opened:
        workdir, checkpoints, training = options.workdir, None, not options.evaluate_only
        ahead: ReadAhead | None = None
        train_step = make_step(config, learner)
        if workdir:
            checkpoints = checkpoints_of(config, data, workdir, say)
            if options.standby:
                take_step = functools.partial(first_step, config, data, learner, train_step)
                ahead = stand_by(opened, workdir, checkpoints, learner, config.seed, take_step, say)
                checkpoints = dataclasses.replace(checkpoints, ahead=ahead.take)
            else:
                opened.enter_context(owned(workdir))
            if training:
                checkpoints.prepare()
        publication = None
        if options.publication:
            publication = opened.enter_context(options.publication)
        id_maps = id_maps_of(learner.collection, config.seed)
        start = first_state(config, learner, checkpoints, data, options, say, id_maps, ahead)
        state, resumed_from, before, continued, replay = start
        before = before if resumed_from else None  # a model that was converted has trained nothing
        if workdir and training and not options.watch:
            if data.directory:
                from dlrm_jax.inference import vocabularies  # with Polars, as in `run_data`

                vocabularies.keep(data.directory, data.fingerprint, workdir)
            if is_process_0():
                _leave_config(workdir / "config.json", config_text(config, data), say)
        notes = describe_run(config, learner, data.kept_negatives.get("train", 1.0))
        predict, measures = make_predict(learner), measures_of(config, data)
        tables: dict[str, Any] = {}

        def metrics_of(
            state: TrainState,
            rows: Split,
            split: str = "validation",
            measures: Measures = measures,
            **others: Any,
        ) -> Metrics:
            others = {"as_ids": id_maps.find} | others if id_maps else others
            size, kept = config.evaluation_batch_size, data.kept_negatives.get(split, 1.0)

            def measure(logits: np.ndarray, rows: Split) -> dict[str, float | int]:
                if measures.has_tables:
                    tables[split] = measures.tables(logits, rows, kept)
                return measures(logits, rows, kept)

            return evaluate(learner, predict, state, rows, size, measure, **others)

        of_training: dict[str, Any] = {"steps": int(state.step), "examples_per_second": None}
        metrics: dict[str, Metrics] = {}
        noted: dict[str, Any] = {}
        file: Record | None = None
        if training:
            notes["warm_start"] = noted_start(options.warm_start, options.warm_start_names, before)
            if workdir:
                events = workdir / "tensorboard" if options.tensorboard else None
                file = opened.enter_context(
                    Record(workdir / "metrics.jsonl", resumed_from or 0, events)
                )
            continued = continued or noted_continuation(options.continue_from, before)
            if continued and not before:
                own = dataclasses.replace(measures, shift=shift_before(continued))
                of_before = functools.partial(metrics_of, measures=own)
                continued = _evaluated_before(continued, state, data, of_before, absent)
                for name, found in continued.before.items():
                    if file:
                        file(continued.step, f"{name}_before", found)
            notes["continue_from"] = continued and dataclasses.asdict(continued)
            sample = evenly_spaced(data.validation, config.validation_examples)
            train = Training(
                config, data, sample, learner, train_step, metrics_of, say, checkpoints, before,
                notes, file,
                options.watch, continued, publication, id_maps,
                replay, options.journal_seconds,
            )  # fmt: skip
            state, of_training, noted = train(state)
            if options.watch:
                found = {"steps": of_training["steps"], "validation": noted["validation"]}
                return Outcome(state, found, id_maps=id_maps)
            chosen = checkpoints and checkpoints.best()
            if checkpoints and chosen is None and noted["validation"]:
                found = noted["validation"].get(config.best_metric)
                say(
                    f"warning: {config.best_metric} is {found} in validation; no checkpoint is the "
                    f"best, the last counts"
                )
            if checkpoints and chosen not in (None, int(state.step)):
                if "test" not in absent:
                    metrics["test_of_last"] = metrics_of(state, data.test, "test")
                    train.record(int(state.step), "test_of_last", metrics["test_of_last"])
                del state  # so that there is room for another one
                state, best = checkpoints.restore_best(learner, id_maps)
                noted = evaluations_of(checkpoints.metadata(best))
            is_known = sample is data.validation and noted["validation"]
            if (
                checkpoints
                and id_maps
                and is_resized(checkpoints.metadata(int(state.step)), id_maps)
            ):
                is_known = None  # ids may have lost rows since
            # A checkpoint notes no tables, and the metrics that were asked for then.
            if is_known and measures.are_in(is_known) and not measures.has_tables:
                metrics["validation"] = noted["validation"]

        tables.clear()  # of states before the chosen one
        # The test split is read here, and before the first step of a run that continues another
        # one, and nowhere else: it chooses nothing.
        # One after the other in all processes: a set would be in an order of its own in each.
        for name, rows in data.splits.items():
            if name == "train":  # as many as there are to validate: the rest says no more
                rows = rows[: len(data.validation) or _TRAIN_EXAMPLES]
            if name not in metrics and name not in absent:
                metrics[name] = metrics_of(state, rows, name)
        if training and "test" in metrics:
            metrics.setdefault("test_of_last", metrics["test"])
        if file and "test" in metrics:
            file(int(state.step), "test", metrics["test"])
        summary = {
            "mesh": notes["mesh"],
            "devices": describe_devices(learner.mesh),
            "preset": options.preset,
            "batch_size": config.batch_size,
            **of_training,
            **metrics,
            **({} if continued is None else continued.summary),
            "teacher_auc": data.teacher_auc and data.teacher_auc["test"],
            "resumed_from": resumed_from,
            "best_step": checkpoints and checkpoints.best(),
        }
        if workdir and is_process_0():
            name = "summary.json" if training else "evaluation.json"
            write_result(workdir / name, to_json(summary, indent=1))
            if tables:
                write_result(workdir / "calibration.json", to_json(tables, indent=1))
        return Outcome(state, summary, noted, id_maps)


def _leave_config(path: Path, text: str, say: Say) -> None:
    """Writes the config; a file that a user has put there stays."""
    if path.exists() and not is_ours(path):
        say(f"{path} has no {VERSION_KEY}, so it isn't of a run, and stays as it is")
        return
    write_result(path, text)


def _evaluated_before(
    continued: Continued,
    state: TrainState,
    data: Dataset,
    metrics_of: Callable[..., Metrics],
    absent: Sequence[str],
) -> Continued:
    """With the metrics of the model that is continued, on the new data, before it trains.

    It has no trained rows for values that came later: it is measured as it would be served.
    """
    as_ids = ids_before(continued, data.bag_lengths)
    names = [name for name in ("validation", "test") if name not in absent]
    found = {name: metrics_of(state, data.splits[name], name, as_ids=as_ids) for name in names}
    return dataclasses.replace(continued, before=found)

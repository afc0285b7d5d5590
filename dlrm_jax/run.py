"""A run from data and learner to a trained model: start or resume, train, evaluate, write files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

from dlrm_jax.backend import describe_devices
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.data.directory import Metadata
from dlrm_jax.data.sample import evenly_spaced
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.inference import vocabularies
from dlrm_jax.native import library
from dlrm_jax.processes import check_same, is_process_0
from dlrm_jax.saved_config import VERSION
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.evaluation import evaluate
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.loop import Intervals, Metrics, train
from dlrm_jax.training.record import Record, owned, to_json, versions
from dlrm_jax.training.saved_names import names_there
from dlrm_jax.training.step import make_predict, make_train_step
from dlrm_jax.training.stopping import Stopping, evaluations_of
from dlrm_jax.training.warm_start import noted_start, warm_start

_TRAIN_EXAMPLES = 1 << 16
"""Training examples that are evaluated if there are none for validation."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The start of a run, and its files. Its config describes everything else.

    Attributes:
        workdir: directory of metrics, summary and checkpoints, from which a run resumes; None for
            a run that writes no files.
        tensorboard: whether the metrics are written to ``workdir/tensorboard`` as well.
        warm_start: checkpoint or directory of arrays that a new run takes values from; a run that
            resumes must have had the same.
        warm_start_names: tables and layers to take.
        evaluate_only: checkpoint of the workdir to evaluate, without training.
        preset: name for the summary.
        watch: function of a step and its validation metrics that makes the run a trial of a search.
            It is called at each evaluation and may raise to end the run. The other splits aren't
            read. The workdir gets no summary, no vocabularies and no best checkpoint.
    """

    workdir: Path | None = None
    tensorboard: bool = False
    warm_start: Path | None = None
    warm_start_names: tuple[str, ...] = ()
    evaluate_only: Literal["latest", "best"] | None = None
    preset: str | None = None
    watch: Callable[[int, Metrics], None] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        state: state of the best checkpoint by validation; the last one if no checkpoint was
            validated or there is no workdir; or the one that was evaluated.
        summary: metrics of each split, steps, speed, as in ``summary.json``, or ``evaluation.json``
            of a run that trains nothing.
        noted: metadata that a checkpoint of the state has of its evaluations.
    """

    state: TrainState
    summary: dict[str, Any]
    noted: dict[str, Any] = dataclasses.field(default_factory=dict)


def run(
    config: Config,
    data: Dataset,
    learner: Learner,
    options: Options,
    say: Callable[[str], None] = lambda text: None,
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
    absent = check_splits(config, data)
    if absent:
        say(f"no examples for {' and '.join(absent)}: there are no metrics of them")
    check_same(
        kernels_of(learner),
        "build them on all machines, or on none, or give --kernels=jax: copies of a table must get "
        "the same numbers",
    )
    with contextlib.ExitStack() as opened:
        workdir, checkpoints = options.workdir, None
        if workdir:
            opened.enter_context(owned(workdir))
            checkpoints = checkpoints_of(config, data, workdir)
            if not options.evaluate_only:
                checkpoints.prepare()
        state, resumed_from = _first_state(config, learner, checkpoints, data, options, say)
        if workdir and data.directory and not options.evaluate_only and not options.watch:
            vocabularies.keep(data.directory, data.fingerprint, workdir)
        before = checkpoints.metadata(resumed_from) if checkpoints and resumed_from else None
        notes = describe_run(config, learner)
        if not options.evaluate_only:
            notes["warm_start"] = noted_start(options.warm_start, options.warm_start_names, before)
        predict = make_predict(learner)

        def metrics_of(state: TrainState, rows: Split) -> Metrics:
            return evaluate(learner, predict, state, rows, config.evaluation_batch_size)

        def record(step: int, split: str, metrics: Metrics) -> None:
            if file:
                file(step, split, metrics)
            if options.watch and split == "validation":
                options.watch(step, metrics)

        def keep(
            state: TrainState, validation: Metrics | None, due: bool, speed: float | None
        ) -> bool:
            if checkpoints and (due or (not options.watch and checkpoints.improves(validation))):
                if file:
                    file.flush()
                known = {**notes, **stopping.noted, "examples_per_second": speed}
                checkpoints.save(learner, state, known, validation)
            return checkpoints is not None

        results: dict[str, Metrics] = {}
        noted: dict[str, Any] = {}
        of_training: dict[str, Any] = {"steps": int(state.step), "examples_per_second": None}
        file: Record | None = None
        if not options.evaluate_only:
            if workdir:
                events = workdir / "tensorboard" if options.tensorboard else None
                file = opened.enter_context(
                    Record(workdir / "metrics.jsonl", resumed_from or 0, events)
                )
            batches = TrainBatches(
                data.train,
                config.batch_size,
                config.seed,
                config.shuffle_window,
                jax.process_index(),
                jax.process_count(),
            )
            total = config.steps or config.epochs * batches.steps_per_epoch
            stopping = Stopping(config, total, before, say, record)
            last = resumed_from if resumed_from and stopping.reason else total
            if resumed_from and resumed_from >= last:
                why = f": {stopping.reason}" if stopping.reason else ""
                say(
                    f"the run has {resumed_from} steps of {total} already, and isn't trained "
                    f"further{why}"
                )
            sample = evenly_spaced(data.validation, config.validation_examples)
            if sample is not data.validation:
                say(
                    f"validation during training: {len(sample):,} of {len(data.validation):,} "
                    f"examples, evenly spaced; all at the end"
                )
            train_step = make_train_step(learner)
            trained = train(
                learner,
                lambda state, batch: train_step(
                    state, batch, learner.put_scalar(stopping.rate_factor)
                ),
                state,
                batches,
                last,
                Intervals(
                    config.log_every,
                    config.eval_every,
                    config.checkpoint_every,
                    config.check_copies_every,
                ),
                validate=None
                if "validation" in absent
                else lambda state: metrics_of(state, sample),
                keep=keep,
                record=record,
                is_enough=stopping,
            )
            state, speed = trained.state, trained.examples_per_second
            noted = {"validation": trained.validation, **stopping.noted}
            if options.watch:
                return Outcome(state, {"steps": int(state.step), "validation": trained.validation})
            del trained  # with its state, so that there is room for another one
            if before and resumed_from == int(state.step):  # killed in the final evaluation
                speed = before.get("examples_per_second")
            of_training = {
                "steps": int(state.step),
                "examples_per_second": speed,
                "stopped_early": int(state.step) < total,
            }
            if checkpoints and checkpoints.best() not in (None, int(state.step)):
                if "test" not in absent:
                    results["test_of_last"] = metrics_of(state, data.test)
                    record(int(state.step), "test_of_last", results["test_of_last"])
                del state
                state, step = checkpoints.restore_best(learner)
                noted = evaluations_of(checkpoints.metadata(step))
            if sample is data.validation and noted["validation"]:
                results["validation"] = noted["validation"]

        # The test split is read here and nowhere else: it chooses nothing.
        # One after the other in all processes: a set would be in an order of its own in each.
        for name, rows in data.splits.items():
            if name == "train":  # as many as there are to validate: the rest says no more
                rows = rows[: len(data.validation) or _TRAIN_EXAMPLES]
            if name not in results and name not in absent:
                results[name] = metrics_of(state, rows)
        if not options.evaluate_only and "test" in results:
            results.setdefault("test_of_last", results["test"])
        if file and "test" in results:
            file(int(state.step), "test", results["test"])
        summary = {
            "mesh": notes["mesh"],
            "devices": describe_devices(learner.mesh),
            "preset": options.preset,
            "batch_size": config.batch_size,
            **of_training,
            **results,
            "teacher_auc": data.teacher_auc and data.teacher_auc["test"],
            "resumed_from": resumed_from,
            "best_step": checkpoints and checkpoints.best(),
        }
        if workdir and is_process_0():
            name = "evaluation.json" if options.evaluate_only else "summary.json"
            write_text(workdir / name, to_json(summary, indent=1))
        return Outcome(state, summary, noted)


def check_splits(config: Config, data: Dataset) -> list[str]:
    """The splits without examples: validation, test, both or neither.

    Raises:
        UserError: there are none for training, or the config needs those for validation.
    """
    absent = [name for name, split in data.splits.items() if not len(split)]
    if "train" in absent:
        raise UserError("train: expected at least one example, got none")
    for name in ("target_auc", "patience", "plateau_factor"):
        if "validation" in absent and getattr(config, name):
            raise UserError(
                f"{name}: expected 0 for data without examples for validation, got "
                f"{getattr(config, name)}"
            )
    return absent


def kernels_of(learner: Learner) -> dict[str, Any]:
    """What lookups and updates run on, as `check_same` compares it: the machine's cache decides."""
    used: dict[str, Any] = {f"kernels of {x}": y for x, y in learner.kernels_in_use.items()}
    if "native" in used.values():
        used["the library of native kernels"] = library.version()
    return used


def checkpoints_of(config: Config, data: Dataset, workdir: Path) -> Checkpoints:
    """The checkpoints of a run, which only a run of the same settings and data resumes from."""
    identity = {"data": data.fingerprint, **config.identity()}
    return Checkpoints(
        workdir / "checkpoints",
        identity,
        config.keep_checkpoints,
        config.best_metric,
        data.earlier_fingerprints,
    )


def describe_run(config: Config, learner: Learner) -> dict[str, Any]:
    """What a checkpoint notes of its run, as JSON: mesh, plan, config, versions."""
    return {
        "mesh": f"{learner.axes.groups}x{learner.axes.shards}",
        "plan": json.loads(learner.collection.plan.to_json()),
        "config": dataclasses.asdict(config),
        "config_version": VERSION,
        "versions": versions(),
        "warm_start": None,
    }


def _first_state(
    config: Config,
    learner: Learner,
    checkpoints: Checkpoints | None,
    data: Dataset,
    options: Options,
    say: Callable[[str], None],
) -> tuple[TrainState, int | None]:
    """The state to go on from, and the step that it was saved at; None for a fresh one."""
    steps = checkpoints.steps() if checkpoints else []
    if checkpoints and steps:
        if not options.evaluate_only:
            state, step = checkpoints.restore_latest(learner)
            checkpoints.delete_superseded()  # the run may have been killed before it did
            say(f"resuming from step {step} in {checkpoints.directory}")
            return state, step
        step = checkpoints.best() if options.evaluate_only == "best" else steps[-1]
        if step is None:
            raise UserError(f"no checkpoint in {checkpoints.directory} was validated")
        say(f"restoring step {step} from {checkpoints.directory}")
        return checkpoints.restore(learner, step), step
    if options.evaluate_only:
        raise UserError(f"--eval_only: there is no checkpoint in {options.workdir}/checkpoints")
    if options.warm_start:
        same_ids = None
        if data.directory:
            same_ids = [data.fingerprint, *Metadata.read(data.directory).grown_from]
        source, names = options.warm_start, options.warm_start_names
        there = names_there(config, source, same_ids)
        return warm_start(learner, config.seed, source, names, same_ids, there), None
    return learner.init(config.seed), None

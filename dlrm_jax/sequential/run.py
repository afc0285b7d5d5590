"""A run of a model of sequences: start or resume, train, evaluate, write results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jax.sharding import Mesh

from dlrm_jax.config import Config
from dlrm_jax.processes import on_process_0
from dlrm_jax.sequential.batches import SequenceTraining
from dlrm_jax.sequential.evaluation import Evaluation
from dlrm_jax.sequential.interactions import Interactions, counts_in
from dlrm_jax.sequential.model import learner_for
from dlrm_jax.sequential.questions import Split
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.sequential.step import make_sequential_step
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.loop import Intervals, Metrics, train
from dlrm_jax.training.record import Record, owned, to_json, versions, write_result
from dlrm_jax.training.stopping import Stopping

_LOG_EVERY = 50  # steps
_MAY_CHANGE = ("epochs", "patience", "evaluate_every", "at", "metric", "exclude_seen")
"""Settings that may differ when a run is resumed."""

_ADDED = {"beta2": 0.999}
"""Settings that runs of earlier versions don't know, with the values that they had."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        summary: contents of ``summary.json``.
        evaluation: evaluation of the run.
        state: state of the best checkpoint.
    """

    summary: dict[str, Any]
    evaluation: Evaluation
    state: TrainState


def run(
    interactions: Interactions,
    split: Split,
    settings: SequentialSettings,
    mesh: Mesh,
    workdir: Path,
    say: Callable[[str], None],
) -> Outcome:
    """Trains a model of sequences, and ranks all items for the questions of validation and test.

    Args:
        interactions: interactions.
        split: interactions for training, and questions.
        settings: settings of the run.
        mesh: mesh, whose devices divide the batch size.
        workdir: directory of metrics, checkpoints and summary, from which a run resumes.
        say: function that shows a line of text to the user.

    Raises:
        UserError: see `SequenceTraining`, `train` and `Checkpoints`.
        Interrupted: a signal came; the state was saved.
    """
    batches = SequenceTraining(interactions, split.train, settings, mesh.size)
    learner = learner_for(len(interactions.values), batches.shapes, settings, mesh)
    evaluation = Evaluation(learner, interactions, batches.shapes, settings)
    every = settings.evaluate_every or batches.steps_per_epoch
    steps = settings.epochs * batches.steps_per_epoch
    identity = {"data": fingerprint(interactions, split), "sequential": fixed_settings(settings)}
    checkpoints = Checkpoints(workdir / "checkpoints", identity, best_metric=settings.metric)
    with contextlib.ExitStack() as opened:
        opened.enter_context(owned(workdir))
        checkpoints.prepare()
        noted: dict[str, Any] | None = None
        if checkpoints.steps():
            state, resumed_from = checkpoints.restore_latest(learner)
            checkpoints.delete_superseded()
            noted = checkpoints.metadata(resumed_from)
            say(f"resuming from step {resumed_from} in {checkpoints.directory}")
        else:
            state, resumed_from = learner.init(settings.seed), 0
        record = opened.enter_context(Record(workdir / "metrics.jsonl", resumed_from))
        config = Config(eval_every=every, patience=settings.patience, best_metric=settings.metric)
        stopping = Stopping(config, steps, noted, say, record)
        notes = _notes(learner, settings)

        def keep(
            state: TrainState, validation: Metrics | None, due: bool, speed: float | None
        ) -> bool:
            if due or checkpoints.improves(validation):
                record.flush()
                known = {**notes, **stopping.noted, "examples_per_second": speed}
                checkpoints.save(learner, state, known, validation)
            return True

        has_validation = len(split.validation.asked) > 0
        ended = steps if stopping.reason is None else resumed_from
        trained = train(
            learner,
            make_sequential_step(learner, settings),  # pyright: ignore[reportArgumentType]
            state,
            batches,
            ended,
            Intervals(_LOG_EVERY, every, every),
            validate=(lambda state: evaluation(state, split.validation))
            if has_validation
            else None,
            keep=keep,
            record=record,
            is_enough=stopping,
        )
        last, speed = int(trained.state.step), trained.examples_per_second
        del trained, state
        state, best = checkpoints.restore_best(learner)
        summary = {
            "steps": last,
            "best_step": best,
            "resumed_from": resumed_from or None,
            "items": len(interactions.values),
            "users": len(interactions.users),
            "interactions": len(interactions),
            "sequences_per_second": speed,
            "tokens_of_filling": _filling(batches),
            **{
                name: evaluation.in_full(state, asked, counts_in(interactions, *split.train.T))
                for name, asked in (("validation", split.validation), ("test", split.test))
                if len(asked.asked)
            },
        }
        on_process_0(lambda: write_result(workdir / "summary.json", to_json(summary, indent=1)))
        return Outcome(summary, evaluation, state)


def fixed_settings(settings: SequentialSettings) -> dict[str, Any]:
    """The settings that a run keeps when it is resumed."""
    return {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in _MAY_CHANGE and _ADDED.get(name) != value
    }


def _notes(learner: Learner, settings: SequentialSettings) -> dict[str, Any]:
    """What a checkpoint notes of its run, as JSON."""
    return {
        "mesh": f"{learner.axes.groups}x{learner.axes.shards}",
        "plan": json.loads(learner.collection.plan.to_json()),
        "settings": dataclasses.asdict(settings),
        "versions": versions(),
    }


def _filling(batches: SequenceTraining) -> float:
    """The share of the tokens on devices that belong to no sequence."""
    shapes = batches.shapes
    there = batches.steps_per_epoch * shapes.sequences * shapes.row
    return 1 - batches.tokens_per_epoch / there


def fingerprint(interactions: Interactions, split: Split) -> str:
    """A checksum of all that a run reads.

    Args:
        interactions: interactions.
        split: split of them.
    """
    sums = xxhash.xxh3_128()
    arrays = (
        interactions.offsets, interactions.items, interactions.times, split.train,
        *split.validation, *split.test,
    )  # fmt: skip
    for array in arrays:
        sums.update(f"{array.dtype} {array.shape}".encode())
        sums.update(np.ascontiguousarray(array).view(np.uint8).data)
    return sums.hexdigest()

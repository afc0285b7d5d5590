"""A run of a model of sequences: start or resume, train, evaluate, write results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jax.sharding import Mesh

from dlrm_jax.processes import on_process_0
from dlrm_jax.sequential.batches import SequenceTraining
from dlrm_jax.sequential.evaluation import Evaluation
from dlrm_jax.sequential.interactions import Interactions, counts_in
from dlrm_jax.sequential.model import learner_for
from dlrm_jax.sequential.questions import Split
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.sequential.step import make_sequential_step
from dlrm_jax.training.best_of_run import Plan, best_of_run
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.record import to_json, write_result

_MAY_CHANGE = ("epochs", "patience", "evaluate_every", "at", "metric", "exclude_seen")
"""Settings that may differ when a run is resumed."""

_ADDED = {"decay_start": 0, "decay_steps": 0, "beta2": 0.999, "hidden_width": 0}
"""Settings that runs of earlier versions don't know, with the values that they had."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        summary: contents of ``summary.json``.
        evaluation: evaluation of the run.
        state: state of the best checkpoint.
        learner: learner of the state.
    """

    summary: dict[str, Any]
    evaluation: Evaluation
    state: TrainState
    learner: Learner


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
    kept = ("exclude_seen",)  # not among the fixed ones, which earlier runs have noted
    plan = Plan(settings.seed, steps, every, settings.patience, settings.metric, kept, "sequences")
    has_validation = len(split.validation.asked) > 0
    with best_of_run(
        learner,
        make_sequential_step(learner, settings),
        batches,
        plan,
        (lambda state: evaluation(state, split.validation)) if has_validation else None,
        workdir,
        identity,
        dataclasses.asdict(settings),
        say,
        {"sequential": of_earlier},
    ) as best:
        summary = {
            "steps": best.steps,
            "best_step": best.best_step,
            "resumed_from": best.resumed_from,
            "items": len(interactions.values),
            "users": len(interactions.users),
            "interactions": len(interactions),
            "sequences_per_second": best.speed,
            "tokens_of_filling": _filling(batches),
            **{
                name: evaluation.in_full(best.state, asked, counts_in(interactions, *split.train.T))
                for name, asked in (("validation", split.validation), ("test", split.test))
                if len(asked.asked)
            },
        }
        on_process_0(lambda: write_result(workdir / "summary.json", to_json(summary, indent=1)))
        return Outcome(summary, evaluation, best.state, learner)


def fixed_settings(settings: SequentialSettings) -> dict[str, Any]:
    """The settings that a run keeps when it is resumed."""
    return {x: y for x, y in dataclasses.asdict(settings).items() if x not in _MAY_CHANGE}


def of_earlier(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint, which may be of an earlier version, as of this one."""
    return {**_ADDED, **saved}


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

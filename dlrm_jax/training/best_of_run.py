"""Training that resumes from its checkpoints, and ends with the best of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.identity import Groups
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.loop import Intervals, Metrics, train
from dlrm_jax.training.record import Record, owned, versions
from dlrm_jax.training.stopping import Stopping

_LOG_EVERY = 50  # steps


class Plan(NamedTuple):
    """How long a run trains, and what it chooses by.

    Attributes:
        seed: seed of the initial values.
        steps: total number of steps.
        evaluate_every: steps between validations, each of which a checkpoint follows.
        patience: validations without a better result after which training ends; 0 for any.
        metric: metric of validation that decides which checkpoint is best.
        measured_with: names of settings that validation depends on: if one changed before the last
            step, checkpoints couldn't be compared.
        unit: name of what a batch has, for the speed that is shown.
    """

    seed: int
    steps: int
    evaluate_every: int
    patience: int
    metric: str
    measured_with: tuple[str, ...] = ()
    unit: str = "examples"


class Best(NamedTuple):
    """The result of `best_of_run`.

    Attributes:
        state: state of the best checkpoint.
        best_step: its number of steps.
        steps: number of steps in all.
        resumed_from: step that the run was resumed from; None if it wasn't.
        speed: examples per second; None if it isn't known.
    """

    state: TrainState
    best_step: int
    steps: int
    resumed_from: int | None
    speed: float | None


@contextlib.contextmanager
def best_of_run(
    learner: Learner,
    step: Callable[[TrainState, Any], Any],
    batches: Any,
    plan: Plan,
    validate: Callable[[TrainState], Metrics] | None,
    workdir: Path,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    say: Callable[[str], None],
    groups: Groups | None = None,
):
    """Context in which the run has ended, and no other one has its directory.

    Args:
        learner: learner of the state.
        step: train step.
        batches: batches by step, with a ``batch_size``.
        plan: length of the run, and the choice of its best state.
        validate: function that gives the metrics of a state; None for the last state being best.
        workdir: directory of metrics and checkpoints.
        identity: JSON that may not change when a run is resumed.
        settings: JSON that checkpoints note of the run.
        say: function that shows a line of text to the user.
        groups: functions for values of the identity that are groups of settings, see `Checkpoints`;
            None for none.

    Yields:
        The `Best`.

    Raises:
        UserError: the metric or a setting of validation has changed; or see `train` and
            `Checkpoints`.
        Interrupted: a signal came; the state was saved.
    """
    checkpoints = Checkpoints(
        workdir / "checkpoints", dict(identity), best_metric=plan.metric, groups=groups or {}
    )
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
            state, resumed_from = learner.init(plan.seed), 0
        record = opened.enter_context(Record(workdir / "metrics.jsonl", resumed_from))
        config = Config(
            eval_every=plan.evaluate_every, patience=plan.patience, best_metric=plan.metric
        )
        stopping = Stopping(config, plan.steps, noted, say, record)
        ended = plan.steps if stopping.reason is None else resumed_from
        if stopping.warning and resumed_from < ended:
            say(stopping.warning)
        if noted and checkpoints.validated_by():
            # The checkpoints that are left were the best by that metric: by another one, one that
            # is gone may have been better.
            _check_measures(("metric",), noted["settings"], settings, workdir)
        if noted and resumed_from < ended:
            _check_measures(plan.measured_with, noted["settings"], settings, workdir)
        notes = {
            "mesh": f"{learner.axes.groups}x{learner.axes.shards}",
            "plan": json.loads(learner.collection.plan.to_json()),
            "settings": dict(settings),
            "versions": versions(),
        }

        def keep(
            state: TrainState, validation: Metrics | None, due: bool, speed: float | None
        ) -> bool:
            if due or checkpoints.improves(validation):
                record.flush()
                known = {**notes, **stopping.noted, "examples_per_second": speed}
                checkpoints.save(learner, state, known, validation)
            return True

        trained = train(
            learner,
            step,  # pyright: ignore[reportArgumentType]
            state,
            batches,
            ended,
            Intervals(_LOG_EVERY, plan.evaluate_every, plan.evaluate_every),
            validate=validate,
            keep=keep,
            record=record,
            is_enough=stopping,
            unit=plan.unit,
        )
        last, speed = int(trained.state.step), trained.examples_per_second
        del trained, state
        state, best = checkpoints.restore_best(learner)
        yield Best(state, best, last, resumed_from or None, speed)


def _check_measures(
    names: Iterable[str], noted: Mapping[str, Any], settings: Mapping[str, Any], workdir: Path
) -> None:
    """Checks that settings by which checkpoints were compared are those of before."""
    for name in names:
        if noted.get(name) != settings[name]:
            raise UserError(
                f"{name}: expected {noted.get(name)}, with which the checkpoints in {workdir} were "
                f"evaluated, got {settings[name]}; give that, or another workdir"
            )

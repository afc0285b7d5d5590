"""A run of a model of requests: start or resume, train, evaluate, write results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dlrm_jax.processes import on_process_0
from dlrm_jax.requests.batches import RequestTraining
from dlrm_jax.requests.evaluation import Evaluation
from dlrm_jax.requests.model import learner_for
from dlrm_jax.requests.requests import Requests, Split
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.requests.step import make_request_step
from dlrm_jax.training.best_of_run import Plan, best_of_run
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.record import to_json, write_result

_MAY_CHANGE = ("epochs", "patience", "evaluate_every", "metric", "eval_length")
"""Settings that may differ when a run is resumed."""


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
    requests: Requests,
    split: Split,
    settings: RequestSettings,
    mesh: Mesh,
    workdir: Path,
    say: Callable[[str], None],
) -> Outcome:
    """Trains a model of requests, and evaluates it on validation and test.

    Args:
        requests: requests.
        split: numbers of the requests for training, validation and test.
        settings: settings of the run.
        mesh: mesh, whose devices divide the batch size.
        workdir: directory of metrics, checkpoints and summary, from which a run resumes.
        say: function that shows a line of text to the user.

    Raises:
        UserError: see `RequestTraining` and `best_of_run`.
        Interrupted: a signal came; the state was saved.
    """
    batches = RequestTraining(requests, split.train, settings, mesh.size)
    learner = learner_for(requests.columns, requests.rows, batches.shapes, settings, mesh)
    evaluation = Evaluation(learner, requests, batches.shapes, settings)
    fixed = {x: y for x, y in dataclasses.asdict(settings).items() if x not in _MAY_CHANGE}
    columns = dataclasses.asdict(requests.columns)
    identity = {"data": requests.fingerprint(split), "columns": columns, **fixed}
    plan = Plan(
        settings.seed,
        settings.epochs * batches.steps_per_epoch,
        settings.evaluate_every or batches.steps_per_epoch,
        settings.patience,
        settings.metric,
        measured_with=("eval_length",),
        unit="requests",
    )
    with best_of_run(
        learner,
        make_request_step(learner),
        batches,
        plan,
        (lambda state: evaluation(state, split.validation)) if len(split.validation) else None,
        workdir,
        identity,
        dataclasses.asdict(settings),
        say,
    ) as best:
        summary = {
            "steps": best.steps,
            "best_step": best.best_step,
            "resumed_from": best.resumed_from,
            "requests": len(requests),
            "candidates": int(requests.candidate_offsets[-1]),
            "longest_history": int(requests.lengths.max(initial=0)),
            "requests_per_second": best.speed,
            "tokens_of_filling": batches.filling,
            **{
                name: evaluation(best.state, numbers)
                for name, numbers in (("validation", split.validation), ("test", split.test))
                if len(numbers)
            },
        }
        on_process_0(lambda: write_result(workdir / "summary.json", to_json(summary, indent=1)))
        return Outcome(summary, evaluation, best.state, learner)

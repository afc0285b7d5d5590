"""What is known of the trials of a search, in order of their results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from optuna.trial import FrozenTrial

from dlrm_jax.search.space import Value

Outcome = Literal["complete", "pruned", "running", "failed", "refused"]
"""The end of a trial. Refused: its config isn't valid. Failed: it was, and training wasn't."""

_ORDER: tuple[Outcome, ...] = ("complete", "pruned", "running", "failed", "refused")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is known of a trial.

    Attributes:
        number: number of the trial, from 0.
        outcome: end of the trial.
        values: combination of the space.
        metric: best validation metric so far; None if there is none.
        step: step of that evaluation.
        steps: step of the last evaluation.
        seconds: time until that one, from the start.
        reason: error of a trial that was refused or has failed.
    """

    number: int
    outcome: Outcome
    values: Mapping[str, Value]
    metric: float | None
    step: int | None
    steps: int | None
    seconds: float | None
    reason: str


def findings_of(
    trials: Iterable[FrozenTrial], names: Sequence[str], higher_is_better: bool
) -> list[Finding]:
    """What is known of trials, the best first; those without a result come last.

    Args:
        trials: trials as the store has them.
        names: names of the settings, in the order of the space.
        higher_is_better: whether the metric is to be large.
    """
    found = [_finding(each, names, higher_is_better) for each in trials]
    sign = -1 if higher_is_better else 1

    def rank(each: Finding) -> tuple[int, float, int]:
        value = math.inf if each.metric is None else sign * each.metric
        return _ORDER.index(each.outcome), value, each.number

    return sorted(found, key=rank)


def _finding(trial: FrozenTrial, names: Sequence[str], higher_is_better: bool) -> Finding:
    notes, reports = trial.user_attrs, trial.intermediate_values
    best = max if higher_is_better else min
    at = best(reports, key=lambda x: reports[x]) if reports else None
    steps: int | None = notes.get("steps")
    outcome: Any = notes.get("outcome") or trial.state.name.lower()
    return Finding(
        trial.number,
        outcome,
        {name: trial.params[name] for name in names if name in trial.params},
        None if at is None else reports[at],
        # Reports are by examples, and a trial has one batch size.
        None if at is None or not steps else round(steps * at / max(reports)),
        steps,
        notes.get("seconds"),
        notes.get("reason", ""),
    )

"""Validation decides: whether the run ends early, and whether the learning rate is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlrm_jax.config import Config
from dlrm_jax.processes import on_process_0
from dlrm_jax.training.metrics import score


@dataclasses.dataclass(frozen=True)
class Improvement:
    """What the evaluations so far have shown, as a checkpoint notes it.

    Attributes:
        metric: metric that decides.
        best: best score so far, see `score`; None if no evaluation had one.
        since_best: number of evaluations after the best one.
        since_cut: number of those after the last cut.
        cuts: number of times that the learning rate was cut.
        factor: product of the factors of all cuts, those of continued runs included.
    """

    metric: str
    best: float | None = None
    since_best: int = 0
    since_cut: int = 0
    cuts: int = 0
    factor: float = 1.0

    def after(
        self, validation: Mapping[str, Any], plateau_patience: int, plateau_factor: float = 1.0
    ) -> Improvement:
        """What it is after one more evaluation.

        Args:
            validation: metrics of the evaluation.
            plateau_patience: evaluations without a better one after which the learning rate is cut;
                0 for no cuts.
            plateau_factor: factor of a cut.
        """
        new = score(validation, self.metric)
        if new is not None and (self.best is None or new > self.best):
            return dataclasses.replace(self, best=new, since_best=0, since_cut=0)
        waited = dataclasses.replace(
            self, since_best=self.since_best + 1, since_cut=self.since_cut + 1
        )
        if not plateau_patience or waited.since_cut < plateau_patience:
            return waited
        factor = self.factor * plateau_factor
        return dataclasses.replace(waited, since_cut=0, cuts=self.cuts + 1, factor=factor)


def evaluations_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint notes of its evaluations."""
    return {x: metadata[x] for x in ("validation", "improvement") if x in metadata}


def factor_of(metadata: Mapping[str, Any]) -> float:
    """The factor of the learning rate by all cuts that a checkpoint notes."""
    found = metadata.get("improvement") or {}
    if "factor" in found:
        return found["factor"]
    # Earlier versions noted cuts alone, all of which were by the factor of the config.
    factor = (metadata.get("config") or {}).get("plateau_factor") or 1.0
    return float(factor ** found.get("cuts", 0))


class Stopping:
    """Ends a run and cuts its learning rate, by its evaluations.

    Only those that come every ``eval_every`` steps count, not the one after the last step: a run
    that goes on later then has the numbers of one that had all steps from the start.

    Args:
        config: config of the run.
        steps: number of steps of the run.
        noted: metadata of the checkpoint that the run resumes from, or ``"validation"`` None and
            ``"cuts"`` and ``"factor"`` of one that it continues on other data; None for a new run.
        say: function that shows a line of text to the user.
        record: function that records the metrics of a step and a split.
    """

    def __init__(
        self,
        config: Config,
        steps: int,
        noted: Mapping[str, Any] | None,
        say: Callable[[str], None],
        record: Callable[[int, str, Mapping[str, Any]], None],
    ):
        self._config, self._say, self._record = config, say, record
        there, metric = noted or {}, config.best_metric
        if found := there.get("improvement"):
            self.improvement = Improvement(**found | {"factor": factor_of(there)})
        else:  # checkpoints of earlier versions noted none
            cuts, factor = there.get("cuts", 0), there.get("factor", 1.0)
            self.improvement = Improvement(metric, cuts=cuts, factor=factor)
        if self.improvement.metric != metric:  # its scores can't be compared
            cuts, factor = self.improvement.cuts, self.improvement.factor
            self.improvement = Improvement(metric, cuts=cuts, factor=factor)
        self.reason = self._reason(noted["validation"]) if noted else None
        """Why the run has ended; None while it goes on."""
        self.warning = _warning(config, steps)
        """What to say of a patience that the run is too short for; None if it isn't."""

    @property
    def noted(self) -> dict[str, Any]:
        """What a checkpoint notes."""
        return {"improvement": dataclasses.asdict(self.improvement)}

    @property
    def rate_factor(self) -> np.float32 | None:
        """Factor of the learning rate now; None if it is never cut and never was."""
        factor = self.improvement.factor
        return np.float32(factor) if self._config.plateau_factor or factor != 1 else None

    def __call__(self, step: int, validation: Mapping[str, Any]) -> bool:
        """Whether the run ends after this evaluation; sets `improvement` and `reason`."""
        config, before = self._config, self.improvement
        if config.eval_every and step % config.eval_every == 0:
            factor = config.plateau_factor
            patience = config.plateau_patience if factor else 0
            # Of process 0: the last digit of a metric may differ between machines.
            after = on_process_0(
                lambda: dataclasses.asdict(before.after(validation, patience, factor))
            )
            self.improvement = Improvement(**after)
        if self.improvement.cuts > before.cuts:
            factor = self.improvement.factor
            self._say(
                f"step {step}: {config.best_metric} was not better in "
                f"{_evaluations(config.plateau_patience)}; the learning rate is {factor:g} of its "
                f"schedule from here on"
            )
            self._record(step, "learning_rate", {"factor": factor})
        self.reason = on_process_0(lambda: self._reason(validation))
        if self.reason:
            self._say(f"step {step}: {self.reason}; the run ends")
        return self.reason is not None

    def _reason(self, validation: Mapping[str, Any] | None) -> str | None:
        config, since = self._config, self.improvement.since_best
        auc = score(validation, "auc")
        if config.target_auc and auc is not None and auc >= config.target_auc:
            return f"the validation AUC is {auc:.5f}, and target_auc {config.target_auc}"
        if config.patience and since >= config.patience:
            return f"{config.best_metric} was not better in {_evaluations(since)} (patience)"
        return None


def _warning(config: Config, steps: int) -> str | None:
    cutting = config.plateau_patience if config.plateau_factor else 0
    idle = [
        f"{name}={needed}"
        for name, needed in (("patience", config.patience), ("plateau_patience", cutting))
        if needed and (needed + 1) * config.eval_every >= steps
    ]
    if not idle:
        return None
    return (
        f"warning: {' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect in {steps} "
        f"steps with an evaluation every {config.eval_every}; evaluate more often"
    )


def _evaluations(count: int) -> str:
    return "1 evaluation" if count == 1 else f"{count} evaluations"

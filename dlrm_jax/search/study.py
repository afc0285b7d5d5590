"""The trials of a search, in an SQLite file that several processes share, by Optuna.

A process that has a trial holds the lock of the trial's file, which ends with the process, however
it ends. So a trial that runs, by its state in the store, and that nobody has locked, was killed:
whoever looks for a trial next takes it over, under its number and with its values. All access is
under one lock of the directory, since SQLite refuses some of two writers at a time.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from dlrm_jax.errors import UserError
from dlrm_jax.locks import advice_on, check_lockable
from dlrm_jax.search.findings import Finding, findings_of
from dlrm_jax.search.identity import Identity
from dlrm_jax.search.space import Space, Value
from dlrm_jax.search.store import check_directory, distribution, explained, open_storage

Sampler = Literal["tpe", "random"]
_NAME = "dlrm_jax"
_LOCKS = ".locks"


class Trial:
    """A trial that this process has; see `Study.next`.

    Args:
        study: study of the trial.
        trial: trial in the store.
        lock: lock of the trial, acquired.
        is_again: whether another process has begun it.
    """

    def __init__(self, study: Study, trial: optuna.Trial, lock: FileLock, is_again: bool):
        self._study, self._trial, self._lock = study, trial, lock
        self.is_again = is_again
        self.number = trial.number
        self.values: dict[str, Value] = {x: trial.params[x] for x in study.space.names}
        self._reported = study.reports(trial.number)
        self._seconds = float(trial.user_attrs.get("seconds", 0))
        self._since = time.monotonic()

    def report(self, step: int, examples: int, metric: float) -> bool:
        """Reports a validation metric, and returns whether the trial is to be ended.

        Args:
            step: step of the evaluation.
            examples: examples trained on so far, at which trials are compared.
            metric: metric of the search; not NaN.
        """
        with self._study.shared():
            if examples not in self._reported:  # a run that was killed evaluates again
                self._reported[examples] = metric
                self._trial.report(metric, examples)
                seconds = self._seconds + time.monotonic() - self._since
                self._trial.set_user_attr("seconds", seconds)
                self._trial.set_user_attr("steps", step)
            return self._study.prunes and bool(self._trial.should_prune())

    def complete(self) -> float:
        """Ends the trial, and returns its value, the best report."""
        best = max if self._study.higher_is_better else min
        value = best(self._reported.values())
        self._tell(TrialState.COMPLETE, value=value)
        return value

    def prune(self) -> None:
        """Ends the trial, which `report` has asked for."""
        self._tell(TrialState.PRUNED)

    def give_up(self, outcome: Literal["refused", "failed"], reason: str) -> None:
        """Ends a trial without a value.

        Args:
            outcome: ``refused`` if its config isn't valid, ``failed`` if its training wasn't.
            reason: error message.
        """
        # Not FAIL, which samplers leave out: a pruned trial without reports is the worst there is,
        # and what is near it is avoided.
        self._tell(TrialState.PRUNED, outcome=outcome, reason=reason)

    def _tell(self, state: TrialState, value: float | None = None, **notes: str) -> None:
        with self._study.shared():
            for name, text in notes.items():
                self._trial.set_user_attr(name, text)
            self._study.store.tell(self._trial, value, state)
        self._lock.release()


class Study:
    """A search in a directory.

    Args:
        directory: directory of the search; made if it isn't there.
        space: space of the search.
        identity: things that all trials share; None for those of a search that is there.
        higher_is_better: whether the metric is to be large.
        sampler: choice of the next combination.
        prunes: whether trials that are worse than the median are ended early.
        seed: seed of the sampler.

    Raises:
        UserError: the directory has another search, or files of something else, or can't be locked.
    """

    def __init__(
        self,
        directory: Path,
        space: Space,
        identity: Identity | None,
        higher_is_better: bool,
        sampler: Sampler = "tpe",
        prunes: bool = True,
        seed: int = 0,
    ):
        self.directory, self.space = directory, space
        self.higher_is_better, self.prunes = higher_is_better, prunes
        self._sampler: Sampler = sampler
        self._seed = seed
        self._distributions = {each.name: distribution(each) for each in space}
        check_directory(directory)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            check_lockable(directory / ".lock")
        except OSError as error:
            raise UserError(
                f"output {directory} cannot be used: {error}{advice_on(error)}"
            ) from error
        # One object, so that a process that has it may acquire it again.
        self._shared = FileLock(directory / ".lock")
        with self.shared():
            self.storage = open_storage(directory)
            self.store = optuna.create_study(
                storage=self.storage,
                study_name=_NAME,
                direction="maximize" if higher_is_better else "minimize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            )
            found = self.store.user_attrs.get("identity")
            if identity and found is None:
                self.store.set_user_attr("identity", identity.as_json(space))
            elif identity and found and (difference := identity.difference(found, space)):
                raise UserError(
                    f"output: {directory} has a search with {difference}; give the same settings "
                    f"to go on with it, or another output"
                )

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Context in which no other process reads or writes the trials; it may lie in another one.

        Raises:
            UserError: the file can't be read or written.
        """
        with explained(self.directory), self._shared:
            yield

    def next(self, trials: int) -> Trial | None:
        """A trial to run: one that was killed, or else a new one.

        Args:
            trials: number of trials in all, of all processes, those that have ended included.

        Returns:
            the trial; None if there are so many, or no combination is left.
        """
        with self.shared():
            known = self._known()
            for each in known:
                if each.state == TrialState.RUNNING and (lock := self._lock(each.number)):
                    return Trial(self, self._again(each.number), lock, True)
            tried = {_key(each.params) for each in known}
            if len(known) >= trials or len(tried) == self.space.size:
                return None
            trial = self._ask()
            if _key(trial.params) in tried:
                # The same training would give the same result. Another one is drawn instead.
                trial.set_user_attr("repeats", True)
                self.store.tell(trial, state=TrialState.FAIL)
                rng = random.Random(self._seed + trial.number)
                while _key(values := self.space.draw(rng)) in tried:
                    pass
                self.store.enqueue_trial(values)
                trial = self._ask()
            lock = self._lock(trial.number)
            assert lock, "the trial is new"
            return Trial(self, trial, lock, False)

    def findings(self) -> list[Finding]:
        """All trials, the best first; those without a result last."""
        with self.shared():
            return findings_of(self._known(), self.space.names, self.higher_is_better)

    def reports(self, number: int) -> dict[int, float]:
        """The reports of a trial by examples; within `shared`."""
        found = self.store.get_trials(deepcopy=False)
        return next(dict(x.intermediate_values) for x in found if x.number == number)

    def importances(self) -> dict[str, float]:
        """The share of each setting in what sets the best trials apart, the largest first.

        It is computed by PED-ANOVA (Watanabe et al., 2023) from the complete trials, of which the
        best tenth counts as best, at least five. Empty for fewer than ten, or if all are alike.
        """
        with self.shared():
            complete = self.store.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(complete) < 10 or len({each.value for each in complete}) < 2:
                return {}
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(
                target_quantile=max(0.1, 5 / len(complete))
            )
            return optuna.importance.get_param_importances(self.store, evaluator=evaluator)

    def _known(self) -> list[FrozenTrial]:
        found = self.store.get_trials(deepcopy=False)
        return [
            each
            for each in found
            if "repeats" not in each.user_attrs and each.state != TrialState.WAITING
        ]

    def _ask(self) -> optuna.Trial:
        """A new trial; its number seeds the sampler, so that it is no other one's again."""
        count = len(self.store.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([self._seed, count]).generate_state(1)[0])
        self.store.sampler = (
            optuna.samplers.TPESampler(seed=seed)
            if self._sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        return self.store.ask(self._distributions)

    def _again(self, number: int) -> optuna.Trial:
        """A trial that another process has begun, with the values that it had got, if any."""
        study = self.storage.get_study_id_from_name(_NAME)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study, number)
        trial = optuna.Trial(self.store, trial_id)
        for name, each in self._distributions.items():
            if isinstance(each, optuna.distributions.CategoricalDistribution):
                trial.suggest_categorical(name, each.choices)
            elif isinstance(each, optuna.distributions.IntDistribution):
                trial.suggest_int(name, each.low, each.high, log=each.log)
            elif isinstance(each, optuna.distributions.FloatDistribution):
                trial.suggest_float(name, each.low, each.high, log=each.log)
        return trial

    def _lock(self, number: int) -> FileLock | None:
        """The lock of a trial; None if a process has it."""
        directory = self.directory / _LOCKS
        directory.mkdir(exist_ok=True)
        lock = FileLock(directory / f"{number:05d}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock


def _key(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(values.items()))

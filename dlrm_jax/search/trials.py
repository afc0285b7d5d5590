"""Runs the trials of a search, one after the other in this process."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from optuna import TrialPruned

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.errors import CopiesDifferError, UserError
from dlrm_jax.files import delete_directory
from dlrm_jax.run import Options, run
from dlrm_jax.run_data import check_data_labels, check_data_settings, check_effects
from dlrm_jax.search.space import described
from dlrm_jax.search.study import Study, Trial
from dlrm_jax.training.build import check_config, make_learner

TRIALS = "trials"
"""Name of the directory of the trials' workdirs."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the trials of a search have in common.

    Attributes:
        config: config of all trials, with the tables of the data.
        data: data set.
        source: path of the data; None for generated examples.
        mesh: devices of a trial.
        workdirs: whether a trial has a workdir, from which it resumes after a kill.
    """

    config: Config
    data: Dataset
    source: str | None
    mesh: Mesh
    workdirs: bool = True


def run_trials(
    study: Study, setting: Setting, trials: int, say: Callable[[str], None] = lambda text: None
) -> None:
    """Runs trials until there are so many, those of other processes included.

    Args:
        study: study that has the trials.
        setting: config and data of the trials.
        trials: number of trials in all.
        say: function that shows a line of text to the user.

    Raises:
        UserError: files can't be read or written. What a trial's settings cause is noted and ends
            that trial alone.
        Interrupted: a signal came; the trial goes on when the search does.
    """
    _sweep(study)
    while trial := study.next(trials):
        _run(study, setting, trial, lambda text, at=trial.number: say(f"trial {at}: {text}"))
        _sweep(study, trial.number)
        gc.collect()  # a trial's tables may be all that fits


def _run(study: Study, setting: Setting, trial: Trial, say: Callable[[str], None]) -> None:
    again = "goes on with " if trial.is_again else ""
    say(f"{again}{described(trial.values)}")
    name = setting.config.best_metric
    try:
        config = study.space.config(setting.config, trial.values)
        check_config(config, setting.mesh)
        check_effects(config, setting.source)
        check_data_settings(config, setting.data)
        if {"loss", "model"} & {*study.space.names}:  # what labels may be depends on them
            check_data_labels(config, setting.data)
        learner = make_learner(config, setting.mesh)
    except UserError as error:
        say(f"refused: {error}")
        return trial.give_up("refused", str(error))
    last = 0, math.nan

    def watch(step: int, metrics: Mapping[str, Any]) -> None:
        nonlocal last
        found = metrics.get(name, math.nan)
        last = step, found
        if math.isnan(found):
            raise UserError(f"validation {name} isn't a number; the split may have one label only")
        if trial.report(step, step * config.batch_size, found):
            raise TrialPruned

    workdir = _workdir(study, trial.number) if setting.workdirs else None
    try:
        run(config, setting.data, learner, Options(workdir, watch=watch), say)
    except TrialPruned:
        say(f"pruned after step {last[0]} with {name} {last[1]:.5f}")
        trial.prune()
    except UserError as error:
        # Of the disk or the machine, not of the settings.
        if isinstance(error, CopiesDifferError) or isinstance(error.__cause__, OSError):
            raise
        say(f"failed: {error}")
        trial.give_up("failed", str(error))
    except OSError:
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            # Another process, or the next start, would resume it, and end like this one.
            trial.give_up("failed", f"{type(error).__name__}: {error}")
            raise
        reason = f"a device has too little memory: {str(error).splitlines()[0]}"
        say(f"failed: {reason}")
        trial.give_up("failed", reason)
    else:
        say(f"complete, its best {name} is {trial.complete():.5f}")


def _workdir(study: Study, number: int) -> Path:
    return study.directory / TRIALS / f"{number:05d}"


def _sweep(study: Study, number: int | None = None) -> None:
    """Deletes the checkpoints of a trial that has ended, or of all; its metrics stay."""
    with study.shared():
        ended = [x.number for x in study.findings() if x.outcome != "running"]
        for each in ended if number is None else [number]:
            directory = _workdir(study, each) / "checkpoints"
            if directory.exists():
                delete_directory(directory)

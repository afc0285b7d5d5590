"""Trials of a comparison: each trial is stored as a JSON file and isn't run again.

A trial of a user's own model class or loss is run again when its source has changed since, see
`dlrm_jax.training.source_hash`. What counts is the source when the comparison started.

All trials of a study have the same data, tables, batches and steps. The learning rate is chosen
for each model and optimizer on the validation split with the first seed; the other seeds use it,
too. A trial's metrics are those of its best evaluation on the validation split, as if training had
stopped there. The test split chooses nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from dlrm_jax.config import Config
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.errors import CopiesDifferError, UserError
from dlrm_jax.files import read_json, write_text
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.evaluation import predictions
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.loop import Intervals, Metrics, train
from dlrm_jax.training.record import to_json
from dlrm_jax.training.source_hash import source_hashes
from dlrm_jax.training.step import make_predict, make_train_step
from experiments.benchmarks.roofline import device_bytes, matrix_flops
from experiments.compare.tasks import Task

RATES: dict[str, tuple[float, ...]] = dict.fromkeys(OPTIMIZERS, (0.001, 0.01, 0.1)) | {
    "sgd": (0.3, 1.0, 3.0),
    "adagrad": (0.01, 0.03, 0.1),
    "rowwise_adagrad": (0.01, 0.03, 0.1),
    "adam": (0.0003, 0.001, 0.003),
}
"""Learning rates to search over, by optimizer."""

# What tables and pictures read of a trial.
_READ = {"trial", "train", "validation", "test", "curve"}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model with its options if any, ``dcn_v2:rank=8``, and an optimizer of all of it."""

    name: str
    optimizer: str

    def __str__(self) -> str:
        return f"{self.name}, {self.optimizer}"

    @property
    def model(self) -> str:
        """The name without options; the name of a class also has a colon."""
        return ":".join(part for part in self.name.split(":") if "=" not in part)

    def config(self, base: Config, learning_rate: float, seed: int) -> Config:
        """The config of a trial of this contender."""
        options = tuple(part for part in self.name.split(":") if "=" in part)
        return dataclasses.replace(
            base,
            model=self.model,
            model_options=options,
            optimizer=self.optimizer,
            learning_rate=learning_rate,
            seed=seed,
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of `run_trial` for each seed, with the chosen learning rate."""

    contender: Contender
    learning_rate: float
    trials: Sequence[Mapping[str, Any]]

    def test(self, metric: str) -> list[float]:
        """The test metric of each seed; NaN if the trial diverged or the metric is undefined."""
        found = [trial["test"] and trial["test"][metric] for trial in self.trials]
        return [math.nan if value is None else value for value in found]

    def mean(self, metric: str) -> float:
        """The mean of `test` over the seeds."""
        return statistics.mean(self.test(metric))


class Study:
    """Trials of one task, stored in a directory; ``base`` decides all but model and optimizer."""

    def __init__(self, base: Config, task: Task, mesh: Mesh, evaluations: int, directory: Path):
        self.base, self.task, self.mesh = base, task, mesh
        self.evaluations, self.directory = evaluations, directory

    def run(
        self, contenders: Sequence[Contender], rates: Mapping[str, Sequence[float]], seeds: int
    ) -> list[Result]:
        """Searches the learning rates, then repeats the best one with seeds 1, 2, …."""
        results = []
        total = sum(len(rates[each.optimizer]) + seeds - 1 for each in contenders)
        with tqdm.tqdm(total=total, unit="trial", dynamic_ncols=True) as bar:

            def trial(contender: Contender, rate: float, seed: int) -> Mapping[str, Any]:
                bar.set_description(f"{contender}, rate {rate:g}, seed {seed}")
                found = self.trial(contender.config(self.base, rate, seed))
                bar.update(1)
                return found

            for each in contenders:
                searched = {rate: trial(each, rate, 0) for rate in rates[each.optimizer]}
                losses = {x: self.task.badness(y["validation"]) for x, y in searched.items()}
                best = min(losses, key=lambda rate: losses[rate])
                if losses[best] == math.inf:
                    raise UserError(
                        f"{each.name} with {each.optimizer} diverges at all learning rates of "
                        f"{', '.join(map(str, searched))}; try smaller ones"
                    )
                others = [trial(each, best, seed) for seed in range(1, seeds)]
                results.append(Result(each, best, [searched[best], *others]))
        return results

    def trial(self, config: Config) -> Mapping[str, Any]:
        """Runs one trial, or reads its file if it exists."""
        identity = {"data": self.task.data.fingerprint, "evaluations": self.evaluations,
                    "mesh": dict(self.mesh.shape), "steps": config.steps,
                    "epochs": config.epochs, **config.identity()}  # fmt: skip
        if sources := source_hashes([config.model], [config.loss]):
            identity["sources"] = sources
        key = hashlib.blake2b(to_json(identity).encode(), digest_size=8).hexdigest()
        path = self.directory / f"{config.model}-{config.optimizer}-{config.seed}-{key}.json"
        if found := _finished(path):
            return found
        self.directory.mkdir(parents=True, exist_ok=True)
        found = run_trial(config, self.task, self.mesh, self.evaluations)
        text = to_json({"trial": identity, **found}, indent=1)
        write_text(path, text)
        return json.loads(text)


def _finished(path: Path) -> Mapping[str, Any] | None:
    """What the file of a trial holds; None if there is none, or it is damaged."""
    try:
        found = read_json(path)
        if isinstance(found, dict) and found.keys() >= _READ:
            return found
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    _log.warning("%s is damaged: the trial is run again", path)
    return None


class _Programs:
    """What is compiled for a config, whatever the seed: it decides no more than initial values."""

    def __init__(self, config: Config, mesh: Mesh):
        self.learner = make_learner(config, mesh)
        self.predict = make_predict(self.learner)
        self._step: tuple[Any, float] | None = None

    def step(self, state: TrainState, placed: Any) -> tuple[Any, float]:
        """The compiled step for arguments like these, and its FLOPs of matrix products."""
        if self._step is None:
            jitted = make_train_step(self.learner)
            compiled = jitted.lower(state, placed).compile()  # pyright: ignore[reportFunctionMemberAccess]
            self._step = compiled, matrix_flops(jitted, state, placed)
        return self._step


@functools.lru_cache(maxsize=4)  # the learning rates of a contender
def _programs(config: Config, mesh: Mesh) -> _Programs:
    return _Programs(config, mesh)


def run_trial(config: Config, task: Task, mesh: Mesh, evaluations: int) -> dict[str, Any]:
    """Trains one model, with so many evaluations, the one at the end included.

    Returns:
        The metrics of ``train`` (on as many examples as for validation), ``validation`` and
        ``test`` at the best evaluation, None if the trial diverged before the first; ``curve``,
        the step and the metrics of each evaluation; ``parameters``; ``flops``, of matrix products,
        per example of a step; ``milliseconds`` of a step; ``bytes``, of tables, parameters and
        optimizer state; ``temporary_bytes`` of a step.
    """
    data, batches = task.data, task.batches(config)
    steps = config.steps or config.epochs * batches.steps_per_epoch
    programs = _programs(dataclasses.replace(config, seed=0), mesh)
    learner, predict = programs.learner, programs.predict
    state = programs.learner.init(config.seed)
    step, flops = programs.step(state, learner.put(batches[0]))
    memory = step.memory_analysis()
    result: dict[str, Any] = {
        "parameters": sum(t.rows * t.dim for t in learner.collection.tables.values())
        + sum(x.size for x in jax.tree.leaves(state.params)),
        "flops": flops / config.batch_size,
        "bytes": device_bytes(state),
        "temporary_bytes": memory.temp_size_in_bytes * mesh.size if memory else None,
        "train": None,
        "validation": None,
        "test": None,
        "milliseconds": None,
        "curve": [],
    }

    def metrics_of(state: TrainState, split: str) -> Metrics:
        rows = data.splits[split]
        if split == "train":
            rows = rows[: len(data.validation)]
        size = config.evaluation_batch_size
        logits = np.concatenate(list(predictions(learner, predict, state, rows, size)))
        return task.metrics(split, logits, rows.labels, rows.sample_weights)

    def validate(state: TrainState) -> Metrics:
        metrics = {split: metrics_of(state, split) for split in ("train", "validation")}
        result["curve"].append({"step": int(state.step), **metrics})
        if task.badness(metrics["validation"]) < task.badness(result["validation"]):
            result.update(metrics, test=metrics_of(state, "test"))
        return metrics["validation"]

    try:
        intervals = Intervals(
            log=0,
            evaluate=-(-steps // evaluations),
            checkpoint=0,
            check_copies=config.check_copies_every,
        )
        trained = train(
            learner, step, state, batches, steps, intervals,
            validate=validate, keep=lambda *_: False, record=lambda *_: None,
        )  # fmt: skip
    except CopiesDifferError:
        raise
    except UserError as error:  # a diverged trial has lost; the others continue
        result["diverged"] = str(error)
        return result
    speed = trained.examples_per_second
    result["milliseconds"] = 1e3 * config.batch_size / speed if speed else None
    return result

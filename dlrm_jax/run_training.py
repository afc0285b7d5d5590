"""The training of a run: its batches, evaluations and checkpoints."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.batches import LaterBatches
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.host_tables.row_feed import FedBatches
from dlrm_jax.run_continued import Continued
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.config_data import train_batches
from dlrm_jax.training.host_memory import feed_of
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.live_maps import LiveMaps, TranslatedBatches
from dlrm_jax.training.loop import Intervals, Metrics, train
from dlrm_jax.training.pipelined import PipelinedStep
from dlrm_jax.training.publication import Publication, ToldBatches
from dlrm_jax.training.record import Record
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.run_journal import RunJournal
from dlrm_jax.training.step import make_train_step
from dlrm_jax.training.stopping import Stopping

Say = Callable[[str], None]
"""A function that shows a line of text to the user."""


_MANY_EPOCHS = 20


def length_warning(
    config: Config, steps: int, per_epoch: int, examples: int, validated: bool
) -> str | None:
    """What to say of a run that may overfit: its many epochs, or that none of them can be chosen.

    Args:
        config: config of the run; epochs that it names itself are meant.
        steps: steps of the run.
        per_epoch: steps of an epoch.
        examples: examples of an epoch.
        validated: whether there is validation, which chooses the checkpoint.
    """
    every = config.eval_every
    is_long = config.steps > 0 and steps > _MANY_EPOCHS * per_epoch
    # In a single epoch no example comes twice, and the last step is as a rule the best.
    chooses_last = validated and every >= steps > per_epoch
    if not is_long and not chooses_last:
        return None
    parts = []
    if is_long:
        parts.append(
            f"{steps:,} steps are {steps / per_epoch:,.0f} epochs of {examples:,} training "
            f"examples, and a model may overfit"
        )
    if chooses_last:
        parts.append(
            f"with eval_every={every} only the last of {steps:,} steps can be the best; make "
            f"eval_every smaller, such as {max(1, min(per_epoch, steps // 2))}"
        )
    elif validated and every:
        parts.append(
            f"evaluations every {every:,} steps choose among {-(-steps // every):,} checkpoints"
        )
    else:
        parts.append(
            "no evaluation chooses among the steps" if validated else "there is no validation"
        )
    return f"warning: {'; '.join(parts)}"


def make_step(config: Config, learner: Learner) -> Callable[..., Any]:
    """The train step of a run, which takes the next batch as well if the config is pipelined."""
    return PipelinedStep(learner) if config.pipelined else make_train_step(learner)


def first_step(
    config: Config,
    data: Dataset,
    learner: Learner,
    train_step: Callable[..., Any],
    state: TrainState,
) -> Any:
    """Takes a step with the first batch of a run, as all others are taken.

    Args:
        config: config of the run.
        data: data set.
        learner: learner of the config.
        train_step: result of `make_step`.
        state: state, which is donated.
    """
    batch = train_batches(config, data, jax.process_index(), jax.process_count())[0]
    if config.dynamic_ids:  # any row will do
        batch = batch._replace(ids=np.zeros(batch.ids.shape, np.int32))
    placed = learner.put(batch)
    following = (placed,) if config.pipelined else ()
    factor = np.float32(1) if config.plateau_factor else None
    return train_step(state, placed, *following, learner.put_scalar(factor))


@dataclasses.dataclass(frozen=True)
class Training:
    """All that the training of a run needs but its state.

    Attributes:
        config: config of the run.
        data: data set.
        sample: validation examples that evaluations during training use.
        learner: learner of the config.
        train_step: result of `make_step`.
        metrics_of: function that gives the metrics of a state over some examples; `evaluate`
            says what ``as_ids`` is.
        say: function that shows a line of text to the user.
        checkpoints: checkpoints of the run; None for a run that writes none.
        before: metadata of the checkpoint that the run resumes from; None for a new run.
        notes: metadata that every checkpoint gets.
        file: file of the metrics; None for a run that writes none.
        watch: see `Options`.
        continued: description of the run that this one continues; None if there is none.
        publication: publisher of the states of the training; None for none.
        id_maps: maps of the state that the training begins with, and then of its last one; None
            without dynamic ids.
        replay: checkpoint and journal that the run resumes from; None for a new run.
        journal_seconds: see `Options`.
    """

    config: Config
    data: Dataset
    sample: Split
    learner: Learner
    train_step: Callable[..., Any]
    metrics_of: Callable[..., Metrics]
    say: Say
    checkpoints: Checkpoints | None
    before: Mapping[str, Any] | None
    notes: Mapping[str, Any]
    file: Record | None
    watch: Callable[[int, Metrics], None] | None
    continued: Continued | None = None
    publication: Publication | None = None
    id_maps: IdMaps | None = None
    replay: Replay | None = None
    journal_seconds: float = 0.0

    def __call__(self, state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """Trains from a state, which is donated.

        Returns:
            state: the last state.
            summary: what the summary says of the training.
            noted: metadata that a checkpoint of the state has of its evaluations.
        """
        config, data, learner = self.config, self.data, self.learner
        resumed_from = int(state.step) if self.before else 0
        batches: Any = train_batches(config, data, jax.process_index(), jax.process_count())
        steps = config.steps or config.epochs * batches.steps_per_epoch
        first, noted = 0, self.before
        if self.continued:
            first, noted = self.continued.step, self.before or self.continued.noted
            batches = LaterBatches(batches, first)
            self._tell_of_schedule(self.continued)
        total = first + steps
        stopping = Stopping(config, steps, noted, self.say, self.record)
        last = resumed_from if resumed_from and stopping.reason else total
        self._tell_if_done(resumed_from, last, total, stopping.reason)
        validated = bool(len(self.sample))
        warning = length_warning(config, steps, batches.steps_per_epoch, len(data.train), validated)
        idle = stopping.warning if config.eval_every < steps or not warning else None  # one cause
        for line in (warning, idle):
            if line and resumed_from < last and not self.watch:
                self.say(line)
        sample = self.sample
        if sample is not data.validation:
            self.say(
                f"validation during training: {len(sample):,} of {len(data.validation):,} "
                f"examples, evenly spaced; all at the end"
            )
        live = None
        if self.id_maps:
            live = LiveMaps(learner, self.id_maps, config.seed, int(state.step))
            batches = TranslatedBatches(batches, live)
        feed = feed_of(learner)
        if feed:
            batches = FedBatches(batches, feed)
        if publication := self.publication:
            publication.begin(state, live)
            batches = ToldBatches(batches, publication)
        if journal := self._journal(live, int(state.step)):
            batches = ToldBatches(batches, journal)
        trained = train(
            learner,
            lambda *args: self.train_step(*args, learner.put_scalar(stopping.rate_factor)),
            state,
            batches,
            last,
            Intervals(
                config.log_every,
                config.eval_every,
                config.checkpoint_every,
                config.check_copies_every,
            ),
            validate=functools.partial(self._validate, live) if len(sample) else None,
            keep=functools.partial(self._keep, stopping, live, journal),
            record=self.record,
            is_enough=stopping,
            looks_ahead=config.pipelined,
            publication=publication,
            maps=live or feed,
            journal=journal,
            note=functools.partial(self._noted, stopping),
        )
        if self.replay and self.replay.number and resumed_from >= last:
            # Nothing was trained, and no checkpoint has what the journal has.
            self._keep(stopping, live, journal, trained.state, trained.validation, True, None)
        if publication:
            publication.end(trained.state)
        if live:
            live.rewind(int(trained.state.step))
        steps, speed = int(trained.state.step), self._speed(trained.examples_per_second)
        summary = {"steps": steps, "examples_per_second": speed, "stopped_early": steps < total}
        if feed:
            summary["host_tables"] = feed.traffic.summary()
        noted = {**stopping.noted, "validation": trained.validation}
        return trained.state, summary, noted

    def _speed(self, measured: float | None) -> float | None:
        """The speed; that of before the restart if no more than one step was left to train."""
        return measured or (self.before or {}).get("examples_per_second")

    def record(self, step: int, split: str, metrics: Metrics) -> None:
        """Records the metrics of a step and a split."""
        if self.file:
            self.file(step, split, metrics)
        if self.watch and split == "validation":
            self.watch(step, metrics)

    def _validate(self, live: LiveMaps | None, state: TrainState) -> Metrics:
        if not live:
            return self.metrics_of(state, self.sample)
        as_ids = live.maps_at(int(state.step)).find
        return self.metrics_of(state, self.sample, as_ids=as_ids)

    def _keep(
        self,
        stopping: Stopping,
        live: LiveMaps | None,
        journal: RunJournal | None,
        state: TrainState,
        validation: Metrics | None,
        due: bool,
        speed: float | None,
    ) -> bool:
        """Saves a checkpoint if one is due or the best; says whether there are checkpoints."""
        if not self.checkpoints:
            return False
        if due or (not self.watch and self.checkpoints.improves(validation)):
            if self.file:
                self.file.flush()
            known, step = (
                {**self.notes, **self._noted(stopping, validation, speed)},
                int(state.step),
            )
            id_maps = live.maps_at(step) if live else None
            self.checkpoints.save(self.learner, state, known, validation, id_maps)
            if journal:
                journal.begin(Replay(self.checkpoints.directory / f"{step:08d}"), step)
        return True

    def _noted(
        self, stopping: Stopping, validation: Metrics | None, speed: float | None
    ) -> dict[str, Any]:
        """What the metadata of a state have that those of an earlier one haven't."""
        known = {"validation": validation and dict(validation), **stopping.noted}
        return {**known, "examples_per_second": self._speed(speed)}

    def _journal(self, live: LiveMaps | None, step: int) -> RunJournal | None:
        """The journal; it goes on from the state that the training begins with, of this step."""
        if not (self.journal_seconds and self.file):
            return None
        journal = RunJournal(self.learner, self.journal_seconds, live, self.file.flush)
        if self.replay:
            journal.begin(self.replay, step)
        return journal

    def _tell_if_done(self, done: int, last: int, total: int, reason: str | None) -> None:
        if done and done >= last:
            why = f": {reason}" if reason else ""
            self.say(f"the run has {done} steps of {total} already, and isn't trained further{why}")

    def _tell_of_schedule(self, continued: Continued) -> None:
        config, first = self.config, continued.step
        if continued.factor != 1:
            self.say(
                f"the learning rate is {continued.factor:g} of its schedule, as "
                f"{continued.checkpoint} has cut it"
            )
        end = config.decay_start + config.decay_steps
        if config.decay_steps and first >= end:
            self.say(
                f"warning: the learning rate's decay ended at step {end}, before this run begins; "
                f"it stays at its last value. Give --decay_steps=0, or a later --decay_start"
            )

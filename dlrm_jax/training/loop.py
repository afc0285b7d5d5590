"""The training loop."""

from __future__ import annotations

import collections
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import tqdm

from dlrm_jax.agreements import Agreements
from dlrm_jax.console import status
from dlrm_jax.data.batches import Batches
from dlrm_jax.data.prefetch import Prefetch
from dlrm_jax.errors import CopiesDifferError, UserError
from dlrm_jax.host_tables.row_feed import RowFeed
from dlrm_jax.processes import agreed, is_process_0
from dlrm_jax.signals import Interrupted, deferred
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.live_maps import LiveMaps, stopped_after
from dlrm_jax.training.publication import Publication
from dlrm_jax.training.run_journal import RunJournal
from dlrm_jax.training.step import TrainStep

_LARGE_WEIGHTS = 1e30  # times a loss, they may be infinite

Metrics = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Steps between actions; with 0, validation and checkpoint come only at the end.

    The copies of tables are compared at each evaluation and before each checkpoint, too; with 0,
    never.
    """

    log: int
    evaluate: int
    checkpoint: int
    check_copies: int = 0


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of `train`.

    Attributes:
        state: state after the last step.
        validation: validation metrics of that state; None without examples for validation.
        examples_per_second: speed of the steps, without the first, which compiles; None if there
            was no other.
    """

    state: TrainState
    validation: Metrics | None
    examples_per_second: float | None


def train(
    learner: Learner,
    train_step: TrainStep,
    state: TrainState,
    batches: Batches,
    steps: int,
    intervals: Intervals,
    validate: Callable[[TrainState], Metrics] | None,
    keep: Callable[[TrainState, Metrics | None, bool, float | None], bool],
    record: Callable[[int, str, Metrics], None],
    is_enough: Callable[[int, Metrics], bool] = lambda step, validation: False,
    looks_ahead: bool = False,
    publication: Publication | None = None,
    maps: LiveMaps | RowFeed | None = None,
    journal: RunJournal | None = None,
    note: Callable[[Metrics | None, float | None], Mapping[str, Any]] = lambda *_: {},
    unit: str = "examples",
) -> Trained:
    """Trains to the given total of steps.

    Args:
        learner: learner of the state.
        train_step: result of `make_train_step`.
        state: state to start from; it is donated.
        batches: training batches by step; those of tables with dynamic ids are translated.
        steps: total number of steps, with those done before.
        intervals: steps between actions. Validation and a checkpoint also follow the last step.
        validate: function that gives the validation metrics of a state; None for no validation.
        keep: function of a state, its validation metrics if they are known, whether a checkpoint
            is due, and the examples per second so far; it is called if one of the first two is the
            case. It returns whether the state is saved if a checkpoint is due.
        record: function that records the metrics of a step and a split.
        is_enough: function that says whether to stop after a step, by its validation metrics.
        looks_ahead: whether the step also takes the batch after its own, as `PipelinedStep` does;
            after the last one, its own again.
        publication: publisher of the states, which knows the batches; None for nothing.
        maps: maps of dynamic ids, or the feed of tables in host memory, which have translated the
            batches' ids; None if ids are rows.
        journal: journal of the run, which is told of the batches elsewhere; None for none. If there
            is no checkpoint that its entries follow, one is due when an entry is.
        note: function of the validation metrics of a state, if they are known, and the examples per
            second so far, that gives the notes of its entry.
        unit: name of what a batch has, for the speed that is shown.

    Raises:
        UserError: a loss isn't finite, or copies of a table differ; the message names the step.
        Interrupted: a signal came; it says whether the state is saved.
    """
    first = int(state.step)
    ahead = learner.backend.programs_ahead
    clock = Clock(batches.batch_size)
    started: collections.deque[tuple[int, jax.Array, jax.Array]] = collections.deque()
    validation: Metrics | None = None
    enough = saved = False
    agreements = Agreements(ahead, questions=3)
    wanted = (batches[step] for step in range(first, steps))
    with (
        deferred() as requested,
        _Progress(first, steps, batches.batch_size, unit) as progress,
        Prefetch(wanted, learner.put) as placed,
        stopped_after(maps),
    ):

        def read_losses(unread: int) -> None:
            """Reads the losses of the steps started, but for the last few."""
            while len(started) > unread:
                step, loss, weights = started.popleft()
                value = finite_loss(loss, step, weights)
                clock.count()
                progress(step, value, clock.examples_per_second)
                if is_due(step, intervals.log) or step == steps:
                    record(step, "train", {"loss": value})

        def ask(step: int) -> None:
            publishing = bool(publication and publication.is_due(step))
            agreements.ask([requested(), bool(journal and journal.interval_over), publishing])

        for step in range(first + 1, first + 1 + agreements.behind):
            ask(step)
        clock.go_on()
        for step in range(first + 1, steps + 1):
            batch = next(placed)
            following = (placed.peek(default=batch),) if looks_ahead else ()
            if maps:
                state = maps.begin(state, step - 1)
            state, loss = train_step(state, batch, *following)
            started.append((step, loss, batch.sample_weights))
            if journal:
                journal.step_done(step)
            evaluating = bool(validate) and (is_due(step, intervals.evaluate) or step == steps)
            due = is_due(step, intervals.checkpoint) or step == steps
            comparing = is_due(step, intervals.check_copies)
            read_losses(0 if evaluating or due or comparing else ahead)

            # Also after a signal, so that a resumed run needn't know that it is due.
            validation = None
            if validate and evaluating:
                validation = validate(state)
                record(step, "validation", validation)
                enough = is_enough(step, validation)
            due = due or enough
            # Read once: a signal that comes later waits for its step.
            ask(step + agreements.behind)
            stop, writing, publishing = agreements.answers()
            entry = journal if writing else None
            due = due or bool(entry and not entry.begun)
            if stop or evaluating or due or comparing:
                read_losses(0)
                if intervals.check_copies:
                    compare_copies(learner, state, step)
                clock.go_on()
            if stop or evaluating or due:
                saved = keep(state, validation, due or stop > 0, clock.examples_per_second)
                clock.go_on()
            if entry and entry.has_news:  # no checkpoint was written instead
                read_losses(0)
                entry.write(state, note(validation, clock.examples_per_second))
                clock.go_on()
            if publication and publication.step_done(state, step, bool(publishing)):
                clock.go_on()
            if stop:
                raise Interrupted(stop, saved)
            if enough:
                break
        if late := agreed(requested()):  # while the last checkpoint was written
            raise Interrupted(late, saved)
    if validate and validation is None:  # there was nothing left to do
        validation = validate(state)
    return Trained(state, validation, clock.examples_per_second)


def is_due(step: int, interval: int) -> bool:
    """Whether something is done after a step that is done every so many steps; 0 for never."""
    return interval > 0 and step % interval == 0


def compare_copies(learner: Learner, state: TrainState, step: int) -> None:
    """Checks that all copies of a state are equal, see `Learner.check_copies`.

    Raises:
        CopiesDifferError: they aren't; the message names the step.
    """
    try:
        learner.check_copies(state)
    except CopiesDifferError as error:
        raise CopiesDifferError(f"after step {step}, {error}") from error


def finite_loss(loss: jax.Array, step: int, sample_weights: jax.Array) -> float:
    """The loss of a step, read from the devices.

    Raises:
        UserError: it isn't finite; the message says why that may be.
    """
    value = float(jax.block_until_ready(loss))  # on all devices, see `processes._exchanged`
    if math.isfinite(value):
        return value
    total = float(jnp.sum(sample_weights))
    if total == 0:  # devices take numbers below 1e-38 for 0
        raise UserError(
            f"the weights of the examples of step {step} sum to zero in float32, so it has no "
            f"loss; leave examples of weight 0 out of the data, make the batch larger, or multiply "
            f"tiny weights by a number. Earlier checkpoints are intact"
        )
    if total > _LARGE_WEIGHTS:
        raise UserError(
            f"the weights of the examples of step {step} sum to {total:g}, too much to average in "
            f"float32; divide all weights by a number. Earlier checkpoints are intact"
        )
    raise UserError(
        f"the loss of step {step} is {value}; lower the learning rate, clip gradients, or look for "
        f"ids and values out of range in that batch. Earlier checkpoints are intact"
    )


class Clock:
    """Time spent in steps, the first of a run left out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._steps = -1
        self._seconds = 0.0
        self._since = 0.0

    def go_on(self) -> None:
        """Starts to count time: the next thing is a step."""
        self._since = time.perf_counter()

    def count(self) -> None:
        """Counts a step that has ended."""
        now = time.perf_counter()
        self._steps += 1
        if self._steps:
            self._seconds += now - self._since
        self._since = now

    @property
    def examples_per_second(self) -> float | None:
        """Speed of the steps; None until two have ended."""
        return self._steps * self._batch_size / self._seconds if self._seconds else None


class _Progress:
    """A bar on a terminal, otherwise a line every ten seconds."""

    def __init__(self, first: int, steps: int, batch_size: int, unit: str):
        self._unit = unit
        self._bar = tqdm.tqdm(
            total=steps,
            initial=first,
            unit="step",
            disable=not (sys.stderr.isatty() and is_process_0()),
        )
        self._steps = steps
        self._batch_size = batch_size
        self._printed = time.monotonic()

    def __enter__(self) -> Callable[[int, float, float | None], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _show(self, step: int, loss: float, examples_per_second: float | None) -> None:
        rate = f"{examples_per_second:,.0f} {self._unit}/s" if examples_per_second else "compiled"
        self._bar.update(1)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate}", refresh=False)
        now = time.monotonic()
        if self._bar.disable and is_process_0() and now - self._printed >= 10:
            self._printed = now
            left = ""
            if examples_per_second:
                seconds = (self._steps - step) * self._batch_size / examples_per_second
                left = f"  {seconds:.0f} s left"
            status(f"step {step}/{self._steps}  loss {loss:.4f}  {rate}{left}")

"""The training loop over a stream, whose end nobody knows."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dlrm_jax.console import status
from dlrm_jax.data.batches import Batch
from dlrm_jax.data.prefetch import Prefetch
from dlrm_jax.errors import UserError
from dlrm_jax.host_exchange import HostExchange
from dlrm_jax.processes import agreed, is_distributed, is_process_0
from dlrm_jax.signals import Interrupted, deferred
from dlrm_jax.stream.agreement import Due, Found, Own, agree
from dlrm_jax.stream.batches import StreamBatch
from dlrm_jax.stream.position import Progress
from dlrm_jax.stream.prequential import SPLIT, Prequential
from dlrm_jax.stream.step import PrequentialStep
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.live_maps import LiveMaps, stopped_after
from dlrm_jax.training.loop import Clock, Metrics, compare_copies, finite_loss, is_due
from dlrm_jax.training.publication import Publication
from dlrm_jax.training.rows_by_id import STREAM
from dlrm_jax.training.run_journal import RunJournal

_SHOWN_EVERY = 10.0  # seconds
_PATIENCE = 1.0  # seconds without a batch after which signals and checkpoints get their turn
_LATE = 60.0  # seconds after which the user is told that a process lacks a batch that others have


@dataclasses.dataclass(frozen=True)
class Intervals:
    """What is done now and then; 0 is never.

    Attributes:
        log: steps between recorded losses.
        checkpoint: steps between checkpoints.
        checkpoint_seconds: seconds between checkpoints, also while nothing comes.
        check_copies: steps between comparisons of the devices' copies.
        idle_seconds: seconds without a new segment, for all processes, that end the run.
    """

    log: int
    checkpoint: int
    checkpoint_seconds: float
    check_copies: int
    idle_seconds: float


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A batch of a stream with its arrays on devices, once for each of two programs.

    Processes compare the checksum of its rows; it is 0 if there is one process alone.
    """

    given: StreamBatch
    predicted: Batch
    trained: Batch
    checksum: int


def place(learner: Learner, batch: Batch) -> tuple[Batch, Batch]:
    """A batch as the two programs of a step take it, see `make_prequential_step`."""
    predicted = learner.put_evaluation(batch)
    return predicted, learner.put(batch) if learner.accumulation_steps > 1 else predicted


class StreamLoop:
    """The loop; `__call__` runs it to the end of the stream.

    Args:
        learner: learner of the states.
        step: result of `make_prequential_step`.
        prequential: windows of the evaluation before training.
        intervals: when losses are recorded and states saved.
        record: function that records the metrics of a step and a split.
        keep: function that saves a state with its part of the stream, and says whether it did;
            it also gets the examples per second.
        exchange: connections to the other processes, which the loop closes at its end; None where
            there are none.
        maps: maps that have translated the batches' ids; None without dynamic ids.
        journal: journal of the run; None for none.
        publication: publisher of the states; None for nothing.
        stop: function that ends a reading of the stream which waits for other processes.

    Attributes:
        last_window: metrics of the last window that has ended; None before.
    """

    def __init__(
        self,
        learner: Learner,
        step: PrequentialStep,
        prequential: Prequential,
        intervals: Intervals,
        record: Callable[[int, str, Metrics], None],
        keep: Callable[[TrainState, Progress, float | None], bool],
        exchange: HostExchange | None,
        maps: LiveMaps | None = None,
        journal: RunJournal | None = None,
        publication: Publication | None = None,
        stop: Callable[[], None] = lambda: None,
    ):
        self._learner, self._step, self._publication = learner, step, publication
        self._prequential, self._intervals = prequential, intervals
        self._record, self._keep, self._maps, self._journal = record, keep, maps, journal
        self._exchange, self._stop = exchange, stop
        self._ahead = learner.backend.programs_ahead
        self._started: collections.deque[tuple[int, jax.Array, jax.Array, _Placed]] = (
            collections.deque()
        )
        self._shown_step = -1
        self.last_window: dict[str, Any] | None = None

    def __call__(
        self,
        state: TrainState,
        progress: Progress,
        batches: Iterator[StreamBatch | float],
        steps: int,
        saved_step: int,
    ) -> tuple[TrainState, Progress, float | None]:
        """Trains until nothing comes any more, or to a total of steps.

        Args:
            state: state to start from; it is donated.
            progress: part of the stream that it was trained on.
            batches: batches behind it, see `stream_batches`.
            steps: total number of steps, with those done before; 0 for any.
            saved_step: step of the latest checkpoint; that of the state if there is none.

        Returns:
            The last state, its part of the stream, and the examples per second; None if there was
            no step but the first, which compiles.

        Raises:
            UserError: a process can't read the stream on, or reads another one; a loss isn't
                finite; or copies of a table differ. In the first two cases the state is saved, as
                it is if the reading has raised another error, which comes up here.
            Interrupted: a signal came; it says whether the state is saved.
            LostProcessError: another process has ended.
        """
        step = int(state.step)
        saved_at = shown_at = complete_at = time.monotonic()
        clock: Clock | None = None
        waited = True
        with (
            deferred() as requested,
            Prefetch(batches, self._place) as placed,
            stopped_after(self._maps),
            contextlib.ExitStack() as ending,
        ):
            ending.callback(self._stop)
            if self._exchange:
                ending.callback(self._exchange.close)

            def save() -> bool:
                nonlocal saved_step, saved_at, waited
                self._read(0, clock)
                saved = True
                if step != saved_step:
                    if self._intervals.check_copies:
                        compare_copies(self._learner, state, step)
                    saved = self._keep(state, progress, clock and clock.examples_per_second)
                saved_step, saved_at, waited = step, time.monotonic(), True
                return saved

            item: _Placed | Exception | float = 0.0
            while not steps or step < steps:
                if not isinstance(item, _Placed):  # otherwise another process has no batch yet
                    item = self._poll(placed)
                own = self._own(item, step, requested(), saved_at)
                try:
                    turn = agree(own, self._exchange)
                except Exception as error:
                    if isinstance(error, UserError) or error is own.error:
                        save()
                    raise
                if turn.signal:
                    raise Interrupted(turn.signal, save())
                if turn.found == Found.IDLE:
                    break
                now, is_step = time.monotonic(), turn.found == Found.BATCH
                if isinstance(item, _Placed) and is_step:
                    clock = clock or Clock(len(item.given.rows))
                    if waited:
                        clock.go_on()
                    waited = False
                    if self._maps:
                        state = self._maps.begin(state, step)
                    state, loss, logits = self._step(state, item.predicted, item.trained)
                    step, progress = step + 1, item.given.progress
                    if self._journal:
                        self._journal.will_train(step, item.given.batch.ids)
                        self._journal.step_done(step)
                    self._started.append((step, loss, logits, item))
                    self._read(self._ahead, clock)
                    item = 0.0
                else:  # nothing new: what was started ends meanwhile
                    self._read(0, clock)
                    waited = True
                if not turn.missing:
                    complete_at = now
                elif now - complete_at >= _LATE:
                    complete_at = math.inf  # until there was nothing to say
                    self._tell_of(turn.missing, progress)
                due = step != saved_step and (
                    is_due(step, self._intervals.checkpoint) or Due.CHECKPOINT in turn.due
                )
                if is_step and is_due(step, self._intervals.check_copies):
                    self._read(0, clock)
                    compare_copies(self._learner, state, step)
                journal = self._journal if Due.JOURNAL in turn.due else None
                if due or (journal and journal.has_news and not journal.begun):
                    save()
                elif journal and journal.has_news:
                    self._read(0, clock)
                    speed = clock and clock.examples_per_second
                    notes = {"examples_per_second": speed, STREAM: progress.to_json()}
                    journal.write(state, notes)
                    waited = True
                # Also while nothing comes: the last state may have been too early for the interval.
                if publication := self._publication:
                    publishing = Due.PUBLICATION in turn.due
                    waited = publication.step_done(state, step, publishing) or waited
                if now - shown_at >= _SHOWN_EVERY:
                    shown_at = now
                    self._show(step, progress, clock)
            saved = save()
            if number := agreed(requested()):
                raise Interrupted(number, saved)
        return state, progress, clock and clock.examples_per_second

    def _place(self, given: StreamBatch | float) -> _Placed | float:
        """Places a batch; seconds without one stay as they are."""
        if not isinstance(given, StreamBatch):
            return given
        checksum = given.rows.checksum() if is_distributed() else 0
        return _Placed(given, *place(self._learner, given.batch), checksum)

    def _poll(self, placed: Prefetch[Any, Any]) -> _Placed | Exception | float:
        """The next batch, the seconds without one, or why there is none."""
        try:
            return placed.poll(_PATIENCE, 0.0)
        except Exception as error:
            return error

    def _own(
        self, item: _Placed | Exception | float, step: int, signal: int, saved_at: float
    ) -> Own:
        """What this process tells the others before a step."""
        due, seconds = Due(0), self._intervals.checkpoint_seconds
        if 0 < seconds <= time.monotonic() - saved_at:
            due |= Due.CHECKPOINT
        if self._journal and self._journal.interval_over:
            due |= Due.JOURNAL
        if self._publication and self._publication.is_due(step + isinstance(item, _Placed)):
            due |= Due.PUBLICATION
        if isinstance(item, _Placed):
            return Own(Found.BATCH, signal, due, item.checksum)
        if isinstance(item, Exception):
            return Own(Found.ERROR, signal, due, error=item)
        is_idle = 0 < self._intervals.idle_seconds <= item
        return Own(Found.IDLE if is_idle else Found.NOTHING, signal, due)

    def _read(self, unread: int, clock: Clock | None) -> None:
        """Reads losses and predictions of the steps started, but for the last few."""
        while len(self._started) > unread:
            step, loss, logits, item = self._started.popleft()
            value = finite_loss(loss, step, item.trained.sample_weights)
            assert clock
            clock.count()
            if is_due(step, self._intervals.log):
                self._record(step, "train", {"loss": value})
            # On all devices, see `processes._exchanged`.
            of_all = np.asarray(jax.block_until_ready(logits))
            found = self._prequential.add(step, of_all, item.given)
            if found is not None:
                self.last_window = found
                self._record(step, SPLIT, found)

    def _tell_of(self, missing: tuple[int, ...], progress: Progress) -> None:
        if is_process_0():
            which = " and ".join(map(str, missing))
            status(
                f"warning: stream: for {_LATE:.0f} seconds process {which} hasn't found the rows "
                f"behind {progress.position or 'the start'} that others have; the run waits: see "
                f"that all processes read one stream"
            )

    def _show(self, step: int, progress: Progress, clock: Clock | None) -> None:
        if not is_process_0() or step == self._shown_step:  # that line stands there already
            return
        self._shown_step = step
        speed = clock and clock.examples_per_second
        rate = f"  {speed:,.0f} examples/s" if speed else ""
        window = self.last_window or {}
        loss = f"  log loss {window['log_loss']:.4f} of the last window" if window else ""
        status(f"step {step}  {progress.position or 'no segment yet'}{loss}{rate}")

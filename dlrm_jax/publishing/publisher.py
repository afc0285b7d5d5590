"""Publishes the state of a run while it trains: a base, then deltas of the rows that have changed.

The training waits while touched rows are copied to the host, and for the first base. All else is
done by other threads, see `delta_writer`.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.errors import UserError
from dlrm_jax.processes import Ask, is_process_0, led, on_process_0
from dlrm_jax.publishing.delta_writer import DeltaWriter, Taken, delete_old
from dlrm_jax.publishing.live_model import LiveModel, LiveModels
from dlrm_jax.publishing.published import (
    OF_WRITER,
    differences,
    differing_rows,
    last_step,
    newest,
    publications,
)
from dlrm_jax.publishing.run_note import claim
from dlrm_jax.publishing.state_reads import TAKE, TAKEN_ROWS, StateReads
from dlrm_jax.serving.export import export
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.live_maps import LiveMaps
from dlrm_jax.training.touched_rows import TouchedRows


class Settings(NamedTuple):
    """How a run is published.

    Attributes:
        directory: directory of the publications, new or made by a publisher.
        seconds: least time between two publications.
        name: name of the model in manifests.
        row_format: row format of the tables.
        share: see `DeltaWriter`.
        deltas: see `DeltaWriter`.
        patience: seconds to wait for another process that publishes into the directory.
    """

    directory: Path
    seconds: float
    name: str
    row_format: RowFormat = "float32"
    share: float = 0.5
    deltas: int = 256
    patience: float = 0.0


class Publisher:
    """Publishes a run. A context manager, whose end waits for what is being written.

    All processes of a run have one and call its methods together. That of process 0 decides and
    writes, and asks the others for what they have of a state.

    What can't be written, as on a full disk, gives a warning; its rows belong to the next
    publication. Several failures in a row give one warning. The end warns if the last state isn't
    published.

    Args:
        settings: settings.
        models: states of the run, as models.
        touched: rows that steps have changed.
        say: function that shows a line of text to the user.
        clock: seconds, ascending.
    """

    def __init__(
        self,
        settings: Settings,
        models: LiveModels,
        touched: TouchedRows,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._settings, self._models, self._touched = settings, models, touched
        self._reads = StateReads(models.trained, touched)
        self._say, self._clock = say, clock
        self._step = -1  # of the last publication; later ones are of later steps
        self._trained = -1  # last step that was done
        self._failure = ""  # why the last publication failed; empty if it didn't
        self._behind = ""  # why what is published isn't a state of the run; empty if it is
        self._due = 0.0
        self._writing: tuple[Taken, Future[None]] | None = None
        self._maps: LiveMaps | None = None
        self._keys: Mapping[str, Keys] = {}  # of what is published
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Publisher:
        """Locks the directory.

        Raises:
            UserError: another process publishes into it, something else is in it, or it isn't
                apart from the run's.
        """
        with contextlib.ExitStack() as stack:
            on_process_0(lambda: self._open(stack))
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: contextlib.ExitStack) -> None:
        settings, workdir = self._settings, self._models.workdir
        stack.enter_context(publications(settings.directory, workdir, settings.patience))
        self._writer = stack.enter_context(DeltaWriter(settings.share, settings.deltas))

    def __exit__(self, *error: object) -> None:
        with self._stack:
            if not is_process_0():
                return
            self._settle(wait=True)
            if self._trained > self._step:
                self._warn_at_end(
                    self._failure or "the run has ended before",
                    "the same command goes on and publishes it",
                )
            elif self._trained >= 0 and self._behind:
                self._warn_at_end(
                    f"{self._behind}, and a base is named by its step, which must be a later one",
                    "train further, or give --publish another name",
                )

    def _warn_at_end(self, reason: str, advice: str) -> None:
        self._say(
            f"warning: publish: the last state, of step {self._trained}, isn't published: "
            f"{reason}; {advice}, or python -m dlrm_jax export --run={self._models.workdir} "
            f"--output=NAME writes an artifact of it"
        )

    def will_train(self, step: int, ids: Int[np.ndarray, "B C"]) -> None:
        """Notes the rows that a step will change; see `Publication`."""
        self._touched.add(step, ids)

    def begin(self, state: TrainState, maps: LiveMaps | None = None) -> None:
        """Goes on from what is published. Call it before the first batch is read.

        Rows that differ from it, as after a crash, belong to the next delta; so do their keys.

        Args:
            state: state that the training goes on from.
            maps: maps of the training; None without dynamic ids.

        Raises:
            UserError: what is published is of another model or run and of a later step.
        """
        self._maps = maps
        led(lambda ask: self._begin(state, ask), self._reads.of(state, maps))

    def _begin(self, state: TrainState, ask: Ask) -> None:
        settings, step = self._settings, int(state.step)
        self._due = self._clock() + settings.seconds
        self._step = last_step(settings.directory)
        published, others, differing = None, set(), {}
        try:
            if published := newest(settings.directory):
                model = self._models.of(state, step, ask)
                others = differences(published.manifest, model, settings.name, settings.row_format)
                if not others:
                    differing, self._keys = differing_rows(published, model)
                elif others <= OF_WRITER:
                    collections.deque(published.chain.rest(), 0)  # to its last step
                self._step = published.chain.step
        except (UserError, OSError) as error:
            self._behind = str(error)
            self._say(f"warning: publish: a new base follows: {error}")
            published = None
        is_other_model = bool(others - OF_WRITER)
        claim(settings.directory, self._models.workdir, self._step, step, is_other_model)
        if published is None:
            return
        if others:
            what = "is of another model" if is_other_model else "has another name or versions"
            self._behind = f"{published.directory} {what}"
            self._say(f"publish: {self._behind}; a new base follows")
            return
        if differing and step == self._step:
            self._behind = f"another state of step {step} is published"
        self._touched.mark(differing)
        self._writer.published = published
        self._say(f"publish: goes on after step {self._step} in {settings.directory}")

    def is_due(self, step: int) -> bool:
        """Whether a state of this step or a later one is to be published; process 0 knows."""
        is_time = is_process_0() and self._clock() >= self._due and step > self._step
        return is_time and self._settle(wait=False)

    def step_done(self, state: TrainState, step: int, due: bool) -> bool:
        """Publishes a state if it is due; says whether that has taken time.

        Args:
            state: state after a step, which isn't donated yet.
            step: number of the step.
            due: answer of `is_due` in process 0.
        """
        self._touched.done(step)
        self._trained = step
        if due:
            reads = self._reads.of(state, self._maps)
            led(lambda ask: self._publish(state, step, ask), reads)
        return due

    def end(self, state: TrainState) -> None:
        """Publishes the last state, and waits until it is written."""
        self._trained = int(state.step)
        self._touched.done(self._trained)
        led(lambda ask: self._end(state, ask), self._reads.of(state, self._maps))

    def _end(self, state: TrainState, ask: Ask) -> None:
        self._settle(wait=True)
        step = self._trained
        for _ in range(2):  # again if what the delta is of turns out to be damaged
            self._publish(state, step, ask)
            self._settle(wait=True)

    def _publish(self, state: TrainState, step: int, ask: Ask) -> None:
        """Takes a later state and has its delta written; or writes a base, if there is none."""
        if step <= self._step:
            return
        model = self._models.of(state, step, ask)
        if self._writer.published is None:
            self._write_base(model, step, ask)
        else:
            now, numbers, rows = time.time(), ask(TAKE), ask(TAKEN_ROWS)
            changes = {name: own.changes(self._keys[name]) for name, own in model.keys.items()}
            taken = Taken(step, now, numbers, rows, model.dense.layers, model.keys, changes)
            self._writing = taken, self._writer.submit(taken)
        self._due = self._clock() + self._settings.seconds

    def _write_base(self, model: LiveModel, step: int, ask: Ask) -> None:
        settings, begun = self._settings, self._clock()
        numbers = ask(TAKE)
        try:
            export(model, settings.directory / str(step), settings.name, settings.row_format)
            self._writer.published, self._step = newest(settings.directory), step
            self._keys = model.keys
            delete_old(settings.directory)
        except (UserError, OSError) as error:
            self._touched.mark(numbers)
            self._failed(step, error)
            return
        self._failure = self._behind = ""
        self._say(f"published step {step} as a base in {self._clock() - begun:.1f} s")

    def _settle(self, wait: bool) -> bool:
        """Looks how the last delta went; False if it isn't written yet.

        Args:
            wait: whether to wait until it is written, and for a new base.
        """
        if self._writing:
            taken, future = self._writing
            if not (wait or future.done()):
                return False
            self._writing = None
            try:
                future.result()
                self._step, self._keys = taken.step, taken.keys
                self._failure = self._behind = ""
            except (UserError, OSError) as error:
                self._touched.mark(taken.numbers)
                self._failed(taken.step, error)
        if damaged := self._writer.compact_if_due(wait):
            self._step = damaged.manifest.step  # later states are to be published, as a whole
        return True

    def _failed(self, step: int, error: Exception) -> None:
        if not self._failure:
            self._say(
                f"warning: publish: step {step} isn't published: {error}; later ones are tried, "
                f"without more lines like this one until one is published"
            )
        self._failure = str(error)

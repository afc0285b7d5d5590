"""A standby: a process that goes on with a run when the one that trains it ends, or is killed.

It waits for the lock of the workdir, which the kernel releases when its process dies, and has ready
what takes time: the programs of a step, compiled and run once, and the state of the latest
checkpoint. It writes nothing before the workdir is its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.errors import DamagedCheckpointError, InUseError, UserError
from dlrm_jax.locks import file_number, held_file
from dlrm_jax.processes import is_distributed
from dlrm_jax.signals import check
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.journal_files import UnreadableEntryError
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.record import LOCK, owned
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.retention import metadata_hash

_PAUSE = 0.02  # seconds between two looks at the lock
_LISTED_EVERY = 0.5  # seconds between two looks for a new checkpoint


class ReadAhead:
    """The state of the latest checkpoint of a run that another process trains.

    Args:
        checkpoints: checkpoints of the run.
        learner: learner of the state.
        seed: seed of the run.

    Attributes:
        taken: journal of the checkpoint that was taken, as far as its state has it; None before.
    """

    def __init__(self, checkpoints: Checkpoints, learner: Learner, seed: int):
        self._checkpoints, self._learner, self._seed = checkpoints, learner, seed
        self._found: str | None = None  # hash of the metadata of the checkpoint looked at last
        self._state: TrainState | None = None
        self._id_maps: IdMaps | None = None
        self._replay: Replay | None = None
        self.taken: Replay | None = None

    @property
    def step(self) -> int | None:
        """The step of the state in memory; None if there is none."""
        return self._state and int(self._state.step)

    def look(self) -> None:
        """Reads the latest checkpoint, unless that is the one in memory, and its journal.

        Raises:
            UserError: it is of another run.
        """
        steps = self._checkpoints.steps()
        found = metadata_hash(self._path(steps[-1])) if steps else None
        if found is None or found == self._found:
            self._read_on()
            return
        # Memory may not have room for two states.
        self._found, self._state, self._replay = found, None, None
        self._id_maps = id_maps_of(self._learner.collection, self._seed)
        try:
            self._state = self._checkpoints.restore(self._learner, steps[-1], self._id_maps)
        except DamagedCheckpointError:
            return  # who has the workdir reads it again, says so, and takes an earlier one
        except UserError:
            if metadata_hash(self._path(steps[-1])) == found:
                raise
            self._found = None  # the run has deleted it meanwhile, and has a later one
            return
        self._replay = Replay(self._path(steps[-1]))
        self._read_on()

    def _read_on(self) -> None:
        state, self._state = self._state, None  # it is donated
        if state is not None and self._replay:
            try:
                state = self._replay.read_on(self._learner, state, self._id_maps)
            except UnreadableEntryError:  # the next look begins with the checkpoint again
                self._found = self._replay = None
                return
        self._state = state

    def take(self, checkpoint: Path, id_maps: IdMaps | None) -> TrainState | None:
        """The state of a checkpoint, if it is in memory; then it isn't kept any longer.

        Args:
            checkpoint: directory of the checkpoint.
            id_maps: maps that become those of the state; None without dynamic ids.
        """
        state, own, replay = self._state, self._id_maps, self._replay
        is_of_it = state is not None and metadata_hash(checkpoint) == self._found
        # Memory may not have room for this state and the one that is read in its place.
        self._state = self._id_maps = self._replay = self._found = None
        if not is_of_it:
            return None
        # Otherwise another one may have gone on from an earlier entry.
        if replay and (replay.damage or not replay.is_current()):
            return None
        if id_maps and own:
            id_maps.maps = own.maps
        self.taken = replay
        return state

    def _path(self, step: int) -> Path:
        return self._checkpoints.directory / f"{step:08d}"


def stand_by(
    opened: contextlib.ExitStack,
    workdir: Path,
    checkpoints: Checkpoints,
    learner: Learner,
    seed: int,
    take_step: Callable[[TrainState], Any],
    say: Callable[[str], None],
) -> ReadAhead:
    """Waits until no other run has the workdir, and makes it this run's own.

    Args:
        opened: stack that the workdir stays locked in.
        workdir: directory of the run.
        checkpoints: checkpoints of the run.
        learner: learner of the run.
        seed: seed of the run.
        take_step: function of a state, which is donated, that takes a step as the run will do it,
            with any batch.
        say: function that shows a line of text to the user.

    Returns:
        The state of the latest checkpoint, as far as it was read.

    Raises:
        UserError: there are several processes, a checkpoint is of another run, the workdir can't be
            used, see `owned`, or isn't that of the run any more.
        Interrupted: a signal came.
    """
    if is_distributed():
        raise UserError("standby: expected one process, got several; stand by in one process")
    _warm_up(learner, seed, take_step)
    ahead = ReadAhead(checkpoints, learner, seed)
    lock, listed, shown = workdir / LOCK, -float("inf"), False
    watched: int | None = None  # the lock's file, which a run in another place has for its own
    while True:
        while (held := held_file(lock)) is not None:
            _check_same(workdir, watched, held)
            watched = held
            check()
            if time.monotonic() - listed >= _LISTED_EVERY:
                ahead.look()
                listed = time.monotonic()
                if not shown:
                    shown = True
                    step = "no checkpoint yet" if ahead.step is None else f"step {ahead.step}"
                    say(f"standing by for {workdir}, {step}")
            time.sleep(_PAUSE)
        if watched is not None:
            _check_same(workdir, watched, file_number(lock))
        try:
            opened.enter_context(owned(workdir))
        except InUseError:  # another one has been faster
            continue
        _check_same(workdir, watched, file_number(lock))
        if shown:
            say(f"taking over {workdir}")
        return ahead


def _check_same(workdir: Path, watched: int | None, found: int | None) -> None:
    """Checks that a workdir hasn't been moved, deleted or unmounted, as the run may go on in it.

    Raises:
        UserError: its lock isn't the file that was watched.
    """
    if watched is not None and found != watched:
        raise UserError(
            f"standby: expected the lock {workdir / LOCK} that the run had, "
            f"{'it is gone' if found is None else 'got another file'}, so that the run may go on "
            f"elsewhere; see that no run trains and that {workdir} is in its place, and start the "
            f"standby again"
        )


def _warm_up(learner: Learner, seed: int, take_step: Callable[[TrainState], Any]) -> None:
    """Compiles and runs the programs of a step, with a state that nothing else reads."""
    state, collection = learner.init(seed), learner.collection
    dynamic = [name for name, table in collection.tables.items() if table.ids]
    if dynamic:
        rows = dict.fromkeys(dynamic, np.zeros(1, np.int32))
        embedding = collection.reset_rows(state.embedding, rows, seed, 0)
        state = dataclasses.replace(state, embedding=embedding)
    jax.block_until_ready(take_step(state))

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
from dlrm_jax.locks import is_held
from dlrm_jax.processes import is_distributed
from dlrm_jax.signals import check
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.journal import Replay
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.record import LOCK, owned
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
            state = self._replay.read_on(self._learner, state, self._id_maps)
        self._state = state

    def take(self, checkpoint: Path, id_maps: IdMaps | None) -> TrainState | None:
        """The state of a checkpoint, if it is in memory; then it isn't kept any longer.

        Args:
            checkpoint: directory of the checkpoint.
            id_maps: maps that become those of the state; None without dynamic ids.
        """
        state, own, replay = self._state, self._id_maps, self._replay
        if state is None or metadata_hash(checkpoint) != self._found:
            return None
        if replay and replay.damage:  # another one may have gone on from an earlier entry
            return None
        if id_maps and own:
            id_maps.maps = own.maps
        self.taken, self._replay = replay, None
        self._state = self._id_maps = self._found = None
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
        UserError: there are several processes, a checkpoint is of another run, or the workdir
            can't be used, see `owned`.
        Interrupted: a signal came.
    """
    if is_distributed():
        raise UserError("standby: expected one process, got several; stand by in one process")
    _warm_up(learner, seed, take_step)
    ahead = ReadAhead(checkpoints, learner, seed)
    lock, listed, shown = workdir / LOCK, -float("inf"), False
    while True:
        while is_held(lock):
            check()
            if time.monotonic() - listed >= _LISTED_EVERY:
                ahead.look()
                listed = time.monotonic()
                if not shown:
                    shown = True
                    step = "no checkpoint yet" if ahead.step is None else f"step {ahead.step}"
                    say(f"standing by for {workdir}, {step}")
            time.sleep(_PAUSE)
        try:
            opened.enter_context(owned(workdir))
        except InUseError:  # another one has been faster
            continue
        if shown:
            say(f"taking over {workdir}")
        return ahead


def _warm_up(learner: Learner, seed: int, take_step: Callable[[TrainState], Any]) -> None:
    """Compiles and runs the programs of a step, with a state that nothing else reads."""
    state, collection = learner.init(seed), learner.collection
    dynamic = [name for name, table in collection.tables.items() if table.ids]
    if dynamic:
        rows = dict.fromkeys(dynamic, np.zeros(1, np.int32))
        embedding = collection.reset_rows(state.embedding, rows, seed, 0)
        state = dataclasses.replace(state, embedding=embedding)
    jax.block_until_ready(take_step(state))

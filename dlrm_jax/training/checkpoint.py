"""Checkpoints: written whole or not at all, readable on any mesh and plan.

    DIRECTORY/00000040/          the state after 40 steps
        metadata.json            identity of the run, metrics, and the place of each array
        dense/                   Orbax: step, parameters, optimizer state
        tables/0, 1, …           Orbax: {table: {"table" or optimizer slot: array}}
        id_maps/                 Orbax: {table: {"keys", "counts", "last_seen", …: array by row}}
        host/NAME.npy            arrays that aren't on devices, if there are any

A checkpoint is written to a `workspaces.workspace` and renamed when it is complete, so a process
killed at any time leaves the earlier ones whole. Tables are written a few at a time, so that memory
grows by little more than the largest.

Several processes write to one directory, which all must see: each writes the arrays of its devices,
and process 0 the rest. All processes call the methods here together.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.files import move_into_place
from dlrm_jax.processes import is_distributed, on_process_0
from dlrm_jax.saved_config import check_version
from dlrm_jax.training.checksums import LoadedSums, SavedSums
from dlrm_jax.training.host_arrays import save_host_arrays
from dlrm_jax.training.identity import Groups, check_identity
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.memory import release_memory
from dlrm_jax.training.metadata import read_metadata, write_metadata
from dlrm_jax.training.resized_tables import ResizedMaps
from dlrm_jax.training.retention import Retention, check_path
from dlrm_jax.training.saved_id_maps import load_id_maps, save_id_maps
from dlrm_jax.training.saved_tables import save_tables
from dlrm_jax.training.serialization import (
    NOT_FINITE,
    flatten,
    load_state,
    orbax,
    save_dense,
)
from dlrm_jax.workspaces import workspace


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        directory: directory of the checkpoints.
        identity: values that must not change between saving and restoring, by name; any JSON.
        keep: number of latest checkpoints to keep; the best one is kept, too.
        best_metric: validation metric that decides which checkpoint is best.
        earlier_data: other values of "data" in the identity that mean the same data.
        groups: functions for values of the identity that are groups of settings, by name. Each
            takes what a checkpoint has of its group and gives that under the names of this version.
        say: function that shows the user a line on each table that has another number of rows.
        ahead: function that gives the state of a checkpoint's directory if it was read before, and
            makes maps those of the state, see `standby`; None for no such function.
        for_new_data: sentence on what takes new data, for the message on other data.
    """

    directory: Path
    identity: Mapping[str, Any]
    keep: int = 2
    best_metric: str = "auc"
    earlier_data: Sequence[str] = ()
    groups: Groups = dataclasses.field(default_factory=dict)
    say: Callable[[str], None] = lambda line: None
    ahead: Callable[[Path, IdMaps | None], TrainState | None] | None = None
    for_new_data: str = ""

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending; some of them may be damaged."""
        return on_process_0(self._there.steps)

    def validated_by(self) -> list[str]:
        """The metrics of the whole checkpoints that were validated; none if none was."""
        return on_process_0(lambda: sorted(set().union(*self._there.validations().values())))

    def best(self) -> int | None:
        """The step of the whole checkpoint with the best validation metric, if any has one."""
        return on_process_0(self._there.best)

    def improves(self, validation: Mapping[str, Any] | None) -> bool:
        """Whether these metrics are better than those of all whole checkpoints."""
        return on_process_0(lambda: self._there.improves(validation))

    @property
    def _there(self) -> Retention:
        return Retention(self.directory, self.keep, self.best_metric)

    def save(
        self,
        learner: Learner,
        state: TrainState,
        notes: Mapping[str, Any],
        validation: Mapping[str, Any] | None,
        id_maps: IdMaps | None = None,
        host_arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes the state, then deletes superseded checkpoints.

        Args:
            learner: learner of the state.
            state: state to write; it must not be donated meanwhile.
            notes: further metadata for people, as JSON: plan, config, versions.
            validation: validation metrics of this state; None if they aren't known.
            id_maps: maps of this state's step; None without dynamic ids.
            host_arrays: arrays beside the state, by name, see `host_arrays`.

        Raises:
            UserError: the disk is full or can't be written to, or the parameters aren't finite.
                Earlier checkpoints and the state are unchanged. If only some processes fail, the
                others wait for them until those end.
        """
        step = int(state.step)
        final = self._there.path(step)
        if on_process_0(lambda: self._there.has(step)):  # a state depends on its step alone
            return
        numbers = jax.tree.leaves((state.params, state.model_state))
        if not all(bool(jnp.isfinite(x).all()) for x in numbers):
            raise UserError(f"the parameters after step {step} {NOT_FINITE}")
        release_memory()
        try:
            with contextlib.ExitStack() as stack:
                writing = Path(on_process_0(lambda: _begin(final, stack)))
                sums = SavedSums()
                save_dense(writing, state, sums)
                metadata = {
                    "step": step,
                    "identity": dict(self.identity),
                    "validation": dict(validation) if validation else None,
                    "params": {path: x.shape for path, x in flatten(state.params).items()},
                    "model_state": {
                        path: x.shape for path, x in flatten(state.model_state).items()
                    },
                    "arrays": save_tables(writing / "tables", learner, state, sums),
                    "id_maps": save_id_maps(writing, id_maps, sums),
                    "checksums": sums.metadata(),
                    **notes,
                }
                given = host_arrays or {}
                metadata |= on_process_0(lambda: save_host_arrays(writing, given))
                on_process_0(lambda: _complete(writing, final, metadata))
        except OSError as error:
            raise UserError(
                f"cannot write the checkpoint {final}: {error}; earlier ones are intact"
            ) from error
        self.delete_superseded()

    def delete_superseded(self) -> None:
        """Deletes checkpoints but for the latest ones and the best, see `Retention`.

        The workdir must be locked.

        Raises:
            UserError: the disk doesn't let one be deleted.
        """
        try:
            on_process_0(self._there.delete_superseded)
        except OSError as error:
            raise UserError(f"cannot delete checkpoints that aren't kept: {error}") from error

    def restore_latest(
        self, learner: Learner, id_maps: IdMaps | None = None
    ) -> tuple[TrainState, int]:
        """Reads the latest whole checkpoint, and sets aside later ones, which are damaged.

        Args:
            learner: learner of the state.
            id_maps: maps that become those of the state; None without dynamic ids.

        Returns:
            The state and its step.

        Raises:
            UserError: it is of another run or can't be read, see `restore`, or no checkpoint is
                whole. Then all stay as they are.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state = self.restore(learner, step, id_maps)
            except DamagedCheckpointError as error:
                damaged[step] = error.reason
                continue
            on_process_0(lambda: self._there.set_aside(damaged))
            return state, step
        reasons = "; ".join(f"{step:08d}: {reason}" for step, reason in damaged.items())
        raise UserError(
            f"no checkpoint in {self.directory} is whole ({reasons}); put a whole copy there, or "
            f"give another workdir to start anew"
        )

    def restore_best(
        self, learner: Learner, id_maps: IdMaps | None = None
    ) -> tuple[TrainState, int]:
        """Reads the best whole checkpoint, or the latest if none was validated.

        Damaged ones are set aside, as by `restore_latest`, which takes the same.

        Returns:
            The state and its step.

        Raises:
            UserError: it is of another run or can't be read, see `restore`; no checkpoint is whole;
                or they were validated, but not by the metric.
        """
        while (step := self.best()) is not None:
            try:
                return self.restore(learner, step, id_maps), step
            except DamagedCheckpointError as error:
                damaged = {step: error.reason}
                on_process_0(lambda damaged=damaged: self._there.set_aside(damaged))
        if (known := self.validated_by()) and self.best_metric not in known:
            raise UserError(
                f"best_metric: expected a metric of the checkpoints in {self.directory}, "
                f"{', '.join(known)}; got {self.best_metric}; give one of them, or another workdir"
            )
        return self.restore_latest(learner, id_maps)

    def restore(self, learner: Learner, step: int, id_maps: IdMaps | None = None) -> TrainState:
        """Reads the state of a step onto the learner's mesh and plan, and maps if there are any.

        Tables with dynamic ids may have another number of rows, see `resized_tables`.

        In a run of several processes, process 0 looks for missing and truncated files before all
        read them. What one process can't decode later, while the others wait for it, ends all. The
        checksums of what they have read are compared by all together.

        Raises:
            UserError: the checkpoint is of another run, the message names the first difference; or
                it can't be read; or, with several processes, a file can't be decoded.
            DamagedCheckpointError: files are missing or damaged.
        """
        path = self._there.path(step)
        if self.ahead and (state := self.ahead(path, id_maps)) is not None:
            return state
        metadata = self.metadata(step)
        check_version(path, metadata)
        check_identity(
            path,
            metadata["identity"],
            self.identity,
            self.groups,
            self.earlier_data,
            self.for_new_data,
        )
        release_memory()
        sums = LoadedSums(path, metadata)
        try:
            loaded = load_id_maps(path, metadata, id_maps, sums)
            maps = ResizedMaps(id_maps, loaded, metadata)
            state = load_state(
                path,
                metadata,
                learner,
                sums,
                lambda table: maps.load_table(learner, path, metadata, table, sums),
            )
        except DamagedCheckpointError as error:
            if not is_distributed():
                raise
            # No reason to go on to an earlier one: the others may be in the midst of the read.
            raise UserError(
                f"cannot read the checkpoint {path} in process {jax.process_index()}: "
                f"{error.reason}; see that all processes can read it, or resume in one process, "
                f"which uses an earlier one if this one is damaged"
            ) from error
        sums.check()  # all processes come to the same verdict
        if id_maps:
            id_maps.load(maps.arrays)
            for line in maps.lines(path.name):
                self.say(line)
        return state

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint."""
        return on_process_0(lambda: read_metadata(self._there.path(step)))

    def prepare(self) -> None:
        """Makes the directory, and deletes the remains of interrupted saves and deletions.

        The workdir must be locked.

        Raises:
            UserError: its path isn't one that Orbax can use, or is of something else; or Orbax
                can't be imported, which would else be known only when the first one is written.
        """
        orbax()
        on_process_0(self._there.prepare)


def _begin(final: Path, stack: contextlib.ExitStack) -> str:
    """Makes the directory that becomes the checkpoint; what ends the stack deletes it."""
    check_path(final)
    final.parent.mkdir(exist_ok=True)  # not its parents: a workdir may have been moved away
    writing = stack.enter_context(workspace(final)) / final.name
    (writing / "tables").mkdir(parents=True)
    return str(writing)


def _complete(writing: Path, final: Path, metadata: Mapping[str, Any]) -> None:
    write_metadata(writing, metadata)
    move_into_place(writing, final)

"""Checkpoints: written whole or not at all, readable on any mesh and plan.

    DIRECTORY/00000040/          the state after 40 steps
        metadata.json            identity of the run, metrics, and the place of each array
        dense/                   Orbax: step, parameters, optimizer state
        tables/0, 1, …           Orbax: {table: {"table" or optimizer slot: array}}

A checkpoint is written to ``00000040.writing`` and renamed when it is complete, so a process
killed at any time leaves the earlier ones whole. Tables are written a few at a time, so that
memory grows by little more than the largest.

Several processes write to one directory, which all must see: each writes the arrays of its devices,
and process 0 the rest. All processes call the methods here together.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlrm_jax.errors import UserError
from dlrm_jax.files import delete_directory, move_into_place
from dlrm_jax.processes import is_process_0, on_process_0
from dlrm_jax.saved_config import saved_fields
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metrics import HIGHER_IS_BETTER
from dlrm_jax.training.orbax_io import load, release_memory, save
from dlrm_jax.training.serialization import (
    FORMAT,
    check_model_state,
    dense_items,
    flatten,
    load_table,
    read_metadata,
    save_tables,
)


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        directory: directory of the checkpoints.
        identity: values that must not change between saving and restoring, by name; any JSON.
        keep: number of latest checkpoints to keep; the best one is kept, too.
        best_metric: validation metric that decides which checkpoint is best.
        earlier_data: other values of "data" in the identity that mean the same data.
    """

    directory: Path
    identity: Mapping[str, Any]
    keep: int = 2
    best_metric: str = "auc"
    earlier_data: Sequence[str] = ()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return on_process_0(self._steps)

    def best(self) -> int | None:
        """The step of the checkpoint with the best validation metric, if any has one."""
        return on_process_0(self._best)

    def improves(self, validation: Mapping[str, Any] | None) -> bool:
        """Whether these metrics are better than those of the best checkpoint."""

        def better() -> bool:
            new = self._score(validation)
            return new is not None and all(new > old for old in self._scores().values())

        return on_process_0(better)

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def _best(self) -> int | None:
        scores = self._scores()
        return max(scores, key=scores.__getitem__, default=None)

    def _scores(self) -> dict[int, float]:
        """The score of each validated checkpoint, by its step."""
        found = {step: self._score(self._metadata(step)["validation"]) for step in self._steps()}
        return {step: score for step, score in found.items() if score is not None}

    def _score(self, validation: Mapping[str, Any] | None) -> float | None:
        """The metric that decides, negated if less is better; None without a finite one."""
        value = validation[self.best_metric] if validation else None
        if value is None or not np.isfinite(value):
            return None
        return value if HIGHER_IS_BETTER[self.best_metric] else -value

    def save(
        self,
        learner: Learner,
        state: TrainState,
        notes: Mapping[str, Any],
        validation: Mapping[str, Any] | None,
    ) -> None:
        """Writes the state, then deletes superseded checkpoints.

        Args:
            learner: learner of the state.
            state: state to write; it must not be donated meanwhile.
            notes: further metadata for people, as JSON: plan, config, versions.
            validation: validation metrics of this state; None if they aren't known.

        Raises:
            UserError: the disk is full or can't be written to, or the parameters aren't finite.
                Earlier checkpoints and the state are unchanged. If only some processes fail, the
                others wait for them until those end.
        """
        step = int(state.step)
        final = self.directory / f"{step:08d}"
        writing = final.with_suffix(".writing")
        if on_process_0(final.exists):  # a state depends on its step alone: nothing to do
            return
        numbers = jax.tree.leaves((state.params, state.model_state))
        if not all(bool(jnp.isfinite(x).all()) for x in numbers):
            raise UserError(
                f"the parameters after step {step} aren't finite and weren't saved; lower the "
                f"learning rate or clip gradients. Earlier checkpoints are intact"
            )
        release_memory()
        try:
            on_process_0(lambda: _make_anew(writing))
            save(writing / "dense", dense_items(state))
            metadata = {
                "format": FORMAT,
                "step": step,
                "identity": dict(self.identity),
                "validation": dict(validation) if validation else None,
                "params": {path: x.shape for path, x in flatten(state.params).items()},
                "model_state": {path: x.shape for path, x in flatten(state.model_state).items()},
                "arrays": save_tables(writing / "tables", learner, state),
                **notes,
            }
            on_process_0(lambda: _complete(writing, final, metadata))
        except BaseException as error:
            if is_process_0():
                shutil.rmtree(writing, ignore_errors=True)
            if isinstance(error, OSError):
                raise UserError(
                    f"cannot write the checkpoint {final}: {error}; earlier ones are intact"
                ) from error
            raise
        on_process_0(self._delete_superseded)

    def restore(self, learner: Learner, step: int) -> TrainState:
        """Reads the state of a step onto the learner's mesh and plan.

        Raises:
            UserError: the checkpoint is damaged, or of another run; the message names the first
                difference.
        """
        path = self.directory / f"{step:08d}"
        metadata = self.metadata(step)
        identity = saved_fields(metadata["identity"])
        for name, expected in self.identity.items():
            found = json.loads(json.dumps(identity.get(name)))
            expected = json.loads(json.dumps(expected))  # as it comes back from the file
            if found != expected and not (name == "data" and found in self.earlier_data):
                raise UserError(
                    f"checkpoint {path} is of another run: its {name} is {_short(found)}, this "
                    f"run's is {_short(expected)}; give the same settings, or another workdir"
                )
        release_memory()
        specs = learner.state_specs()
        check_model_state(path, metadata, specs.model_state)
        dense = load(path / "dense", dense_items(specs))
        leaves = [dense["optimizer"][str(i)] for i in range(len(dense["optimizer"]))]
        optimizer = jax.tree.unflatten(jax.tree.structure(specs.optimizer), leaves)
        embedding = learner.collection.from_arrays(
            lambda table: load_table(
                path, metadata, table.name, learner.collection.array_specs(table.name)
            ),
            seed=0,
        )
        model_state = dense.get("model_state", {})
        return TrainState(dense["step"], dense["params"], optimizer, embedding, model_state)

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint."""
        return on_process_0(lambda: self._metadata(step))

    def _metadata(self, step: int) -> dict[str, Any]:
        return read_metadata(self.directory / f"{step:08d}")

    def _delete_superseded(self) -> None:
        steps = self._steps()
        for step in set(steps[: -self.keep]) - {self._best()}:
            delete_directory(self.directory / f"{step:08d}")

    def sweep(self) -> None:
        """Deletes the remains of interrupted saves and deletions. The workdir must be locked."""
        on_process_0(self._sweep)

    def _sweep(self) -> None:
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.suffix in (".writing", ".deleting") and path.is_dir():
                    shutil.rmtree(path)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "…"


def _make_anew(writing: Path) -> None:
    shutil.rmtree(writing, ignore_errors=True)
    (writing / "tables").mkdir(parents=True)


def _complete(writing: Path, final: Path, metadata: Mapping[str, Any]) -> None:
    (writing / "metadata.json").write_text(json.dumps(metadata, indent=1))
    move_into_place(writing, final)

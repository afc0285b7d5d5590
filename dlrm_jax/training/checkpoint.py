"""Checkpoints: written whole or not at all, readable on any mesh and plan.

    DIRECTORY/00000040/          the state after 40 steps
        metadata.json            what it is of, its metrics, and where each array lies
        dense/                   Orbax: step, parameters, optimizer state
        tables/0, 1, …           Orbax: {table: {"weights" or slot: [rows, dim] or [rows]}}

A checkpoint is written to ``00000040.writing`` and renamed when it is complete. Tables are
written a few at a time, so that memory grows by little more than the largest.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from orbax.checkpoint import v1 as ocp

from dlrm_jax.errors import UserError
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metrics import HIGHER_IS_BETTER

FORMAT = 1

# Arrays are collected up to this size before they are written together: one write for each
# of many small tables would take longer than their bytes.
_ITEM_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        directory: where they lie.
        identity: what must not change between saving and restoring, by name; any JSON.
        keep: how many of the latest to keep; the best is kept besides.
        best_metric: the validation metric that decides which is best.
    """

    directory: Path
    identity: Mapping[str, Any]
    keep: int = 2
    best_metric: str = "auc"

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def best(self) -> int | None:
        """The step of the checkpoint with the best validation metric, if any has one."""
        values = {step: self._metric(step) for step in self.steps()}
        known = {step: value for step, value in values.items() if value is not None}
        sign = 1 if HIGHER_IS_BETTER[self.best_metric] else -1
        return max(known, key=lambda step: sign * known[step], default=None)

    def improves(self, validation: Mapping[str, Any] | None) -> bool:
        """Whether these metrics are better than those of the best checkpoint."""
        if validation is None or not np.isfinite(validation[self.best_metric]):
            return False
        best = self.best()
        if best is None:
            return True
        old, new = self._metric(best), validation[self.best_metric]
        assert old is not None
        return new > old if HIGHER_IS_BETTER[self.best_metric] else new < old

    def save(
        self,
        learner: Learner,
        state: TrainState,
        notes: Mapping[str, Any],
        validation: Mapping[str, Any] | None,
    ) -> None:
        """Writes the state, then deletes what needn't be kept any longer.

        Args:
            learner: whose state it is.
            state: not donated meanwhile.
            notes: kept beside it for people: plan, config, versions.
            validation: the metrics of this very state, if they are known.

        Raises:
            UserError: the disk is full or can't be written to. Earlier checkpoints and the
                state are as they were.
        """
        step = int(state.step)
        final = self.directory / f"{step:08d}"
        writing = final.with_suffix(".writing")
        if final.exists():  # the state is a function of the step: it is there already
            return
        try:
            shutil.rmtree(writing, ignore_errors=True)
            (writing / "tables").mkdir(parents=True)
            dense = {"step": state.step, "params": state.params, "optimizer": state.optimizer}
            _save(writing / "dense", _plain(dense))
            metadata = {
                "format": FORMAT,
                "step": step,
                "identity": dict(self.identity),
                "validation": dict(validation) if validation else None,
                "params": {path: x.shape for path, x in flatten(state.params).items()},
                "arrays": _save_tables(writing / "tables", learner, state),
                **notes,
            }
            (writing / "metadata.json").write_text(json.dumps(metadata, indent=1))
            writing.rename(final)
        except OSError as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise UserError(
                f"cannot write the checkpoint {final}: {error}; earlier checkpoints are intact"
            ) from error
        self._delete_superseded()

    def restore(self, learner: Learner, step: int) -> TrainState:
        """Reads the state of a step onto the learner's mesh and plan.

        Raises:
            UserError: the checkpoint is of something else, naming the first difference, or
                is damaged.
        """
        path = self.directory / f"{step:08d}"
        metadata = self.metadata(step)
        for name, expected in self.identity.items():
            found = metadata["identity"].get(name)
            expected = json.loads(json.dumps(expected))  # as it comes back from the file
            if found != expected:
                raise UserError(
                    f"checkpoint {path} is of another run: its {name} is {_short(found)}, this "
                    f"run's is {_short(expected)}; give the same settings, or another workdir"
                )
        params = jax.eval_shape(lambda: learner.init_params(0))
        abstract = {
            "step": jax.ShapeDtypeStruct((), np.int32),
            "params": params,
            "optimizer": jax.eval_shape(learner.dense_optimizer.init, params),
        }
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=learner.replicated), abstract
        )
        dense = _load(path / "dense", _plain(placed))
        leaves = [dense["optimizer"][str(i)] for i in range(len(dense["optimizer"]))]
        optimizer = jax.tree.unflatten(jax.tree.structure(abstract["optimizer"]), leaves)
        embedding = learner.collection.build(
            lambda table: load_table(
                path, metadata, table.name, learner.collection.logical(table.name)
            ),
            seed=0,
        )
        return TrainState(dense["step"], dense["params"], optimizer, embedding)

    def metadata(self, step: int) -> dict[str, Any]:
        """What was written beside the state."""
        return read_metadata(self.directory / f"{step:08d}")

    def _metric(self, step: int) -> float | None:
        validation = self.metadata(step)["validation"]
        value = validation and validation[self.best_metric]
        return value if value is not None and np.isfinite(value) else None

    def _delete_superseded(self) -> None:
        steps = self.steps()
        for step in set(steps[: -self.keep]) - {self.best()}:
            path = self.directory / f"{step:08d}"
            # Renamed first: what is half deleted must not look like a checkpoint.
            doomed = path.rename(path.with_suffix(".deleting"))
            shutil.rmtree(doomed)

    def sweep(self) -> None:
        """Deletes what interrupted saves and deletions have left. Only for the workdir's owner."""
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.suffix in (".writing", ".deleting"):
                    shutil.rmtree(path)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of one checkpoint.

    Raises:
        UserError: there is no checkpoint, or one of another format.
    """
    try:
        metadata = json.loads((path / "metadata.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a checkpoint: {error}") from error
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {metadata.get('format')}, this program reads {FORMAT}"
        )
    return metadata


def load_table(
    path: Path, metadata: Mapping[str, Any], table: str, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Array]:
    """Reads one table's logical arrays.

    Args:
        path: of the checkpoint.
        metadata: from `read_metadata`.
        table: its name.
        wanted: shapes, dtypes and shardings by key, from `EmbeddingCollection.logical`.

    Raises:
        UserError: the checkpoint has no such table, or one of another shape.
    """
    arrays = {}
    for key, abstract in wanted.items():
        entry = metadata["arrays"].get(f"{table}/{key}")
        if entry is None:
            raise UserError(f"checkpoint {path} has no array {key!r} of a table {table!r}")
        if tuple(entry["shape"]) != abstract.shape:
            raise UserError(
                f"checkpoint {path}: {key} of table {table} has shape {tuple(entry['shape'])}, "
                f"expected {abstract.shape}"
            )
        item = _load(path / "tables" / entry["item"], {table: {key: abstract}}, partial=True)
        arrays[key] = item[table][key]
    return arrays


def load_params(path: Path, abstract: Any) -> Any:
    """Reads those of the dense parameters that the nested dicts of shapes name."""
    return _load(path / "dense", {"params": abstract}, partial=True)["params"]


def _save_tables(directory: Path, learner: Learner, state: TrainState) -> dict[str, dict[str, Any]]:
    """Writes all tables; returns, by ``table/key``, in which item each array lies."""
    index: dict[str, dict[str, Any]] = {}
    pending: dict[str, dict[str, Array]] = {}
    items = 0

    def flush() -> None:
        nonlocal items
        if pending:
            _save(directory / str(items), pending)
            pending.clear()
            gc.collect()  # saving has put the arrays into reference cycles
            items += 1

    size = 0
    for table, key, array in learner.collection.arrays(state.embedding):
        size += array.nbytes
        pending.setdefault(table.name, {})[key] = array
        index[f"{table.name}/{key}"] = {"item": str(items), "shape": array.shape}
        del array  # otherwise it would live on while the next one is made
        if size >= _ITEM_BYTES:
            flush()
            size = 0
    flush()
    return index


def _save(path: Path, tree: Any) -> None:
    with _context():
        ocp.save(str(path.absolute()), tree)


def _load(path: Path, abstract: Any, partial: bool = False) -> Any:
    try:
        with _context(partial):
            return ocp.load(str(path.absolute()), abstract)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error


def _context(partial: bool = False) -> ocp.Context:
    context = ocp.Context()
    context.pytree_options.loading.partial_load = partial
    # Trained weights don't compress, and trying takes most of the time of a save.
    context.array_options.saving.use_compression = False
    context.memory_options.deepcopy_host_arrays = False  # saving blocks; nothing changes meanwhile
    return context


def _plain(tree: Any) -> Any:
    """Optimizer states as numbered leaves: their types are optax's, not the file's."""
    leaves = jax.tree.leaves(tree["optimizer"])
    return {**tree, "optimizer": {str(i): leaf for i, leaf in enumerate(leaves)}}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "…"


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted paths as keys."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[Any, Any]:
    """The opposite of `flatten`; numbers among the keys come back as such."""
    tree: dict[Any, Any] = {}
    for path, value in flat.items():
        *parents, leaf = (int(key) if key.isdecimal() else key for key in path.split("."))
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree

"""A trained run of two towers, read for export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.metadata import of_columns
from dlrm_jax.errors import UserError
from dlrm_jax.inference.loading import for_prediction, load_checked
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.mesh import make_mesh
from dlrm_jax.retrieval.model import MODEL
from dlrm_jax.retrieval.run import Retrieval
from dlrm_jax.retrieval.settings import RetrievalSettings, saved_settings
from dlrm_jax.retrieval.task import Task, make_task
from dlrm_jax.saved_config import trained_config
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.metadata import read_metadata

_BATCH = 8192
_RECALL_AT = (10, 100)


@dataclasses.dataclass(frozen=True)
class TrainedTowers:
    """A checkpoint with the data that it was trained on.

    Attributes:
        task: task of the run, with the k of recall that there are items for.
        model: checkpoint, with its dense model and its tables.
        retrieval: both towers.
        state: parameters and tables.
    """

    task: Task
    model: TrainedModel
    retrieval: Retrieval
    state: TrainState

    @classmethod
    def read(cls, checkpoint: Path, data: Dataset) -> TrainedTowers:
        """Reads a checkpoint and finds the items in its data.

        Args:
            checkpoint: checkpoint of two towers, see `find_towers`.
            data: data of the training, with the label of `labels_of`.

        Raises:
            UserError: the checkpoint is damaged, or of other data.
        """
        metadata = read_metadata(checkpoint)
        config = trained_config(checkpoint, metadata)
        if config.model != MODEL:  # another one would be imported
            raise UserError(f"{checkpoint}: expected the model {MODEL}, got {config.model!r}")
        prints = (data.fingerprint, *data.earlier_fingerprints)
        if metadata["identity"].get("data") not in map(of_columns, prints):
            raise UserError(
                f"data: {checkpoint} was trained on other data than {data.source}: its ids mean "
                f"other values; give the data of the training"
            )
        saved = saved_settings(metadata["identity"]["retrieval"])
        given: Any = {x: tuple(y) if isinstance(y, list) else y for x, y in saved.items()}
        task = make_task(data, RetrievalSettings(**{**given, "recall_at": (1,)}))
        ks = tuple(k for k in _RECALL_AT if k <= len(task.items)) or (len(task.items),)
        settings = dataclasses.replace(task.settings, recall_at=ks)
        task = dataclasses.replace(task, settings=settings)
        mesh = make_mesh("1x1")
        _, learner, state, *_ = load_checked(checkpoint, metadata, config, mesh, _BATCH)
        plain = dataclasses.replace(for_prediction(config, _BATCH), kernels="jax")
        model = TrainedModel(checkpoint, metadata, config, make_learner(plain, mesh), None, None)
        retrieval = Retrieval(task, for_prediction(config, _BATCH), learner)
        return cls(task, model, retrieval, state)


def find_towers(run_or_checkpoint: Path) -> Path | None:
    """The checkpoint of a run of two towers; None if it is no such run.

    Args:
        run_or_checkpoint: workdir of a run, or a checkpoint, see `find_checkpoint`.

    Raises:
        UserError: there is no checkpoint.
    """
    checkpoint = find_checkpoint(run_or_checkpoint)
    return checkpoint if "retrieval" in read_metadata(checkpoint)["identity"] else None


def labels_of(checkpoint: Path) -> tuple[str, ...]:
    """The label of choices that a checkpoint was trained with; empty for data with one label."""
    return trained_config(checkpoint, read_metadata(checkpoint)).labels

"""The checkpoint of a run that predicts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.retention import Retention


def find_checkpoint(run_or_checkpoint: Path) -> Path:
    """A checkpoint as it is; of a workdir its best one, or the latest if none was validated.

    Damaged checkpoints of a workdir count for nothing.

    Args:
        run_or_checkpoint: directory of a checkpoint, or workdir of a run.

    Raises:
        UserError: the workdir has no checkpoint, or they can't be read.
    """
    directory = run_or_checkpoint / "checkpoints"
    if (run_or_checkpoint / "metadata.json").exists() or not directory.is_dir():
        return run_or_checkpoint
    run, failure = Retention(directory, 1, "auc"), None
    for step in reversed(run.steps()):
        latest = run.path(step)
        try:
            metric = trained_config(latest, read_metadata(latest)).best_metric
        except DamagedCheckpointError as error:
            failure = failure or error
            continue
        best = dataclasses.replace(run, best_metric=metric).best()
        return latest if best is None else run.path(best)
    raise failure or UserError(
        f"{run_or_checkpoint} has no checkpoint in checkpoints/; train it first"
    )

"""The checkpoint of a run that predicts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.retention import Retention


def find_checkpoint(run_or_checkpoint: Path) -> Path:
    """A checkpoint as it is; of a run its best one, or the latest if none was validated.

    This is the one rule by which commands choose a checkpoint, of click models and of two towers.

    Damaged checkpoints of a run count for nothing. What is neither is returned as it is, too: it
    may be a directory of arrays.

    Args:
        run_or_checkpoint: directory of a checkpoint, workdir of a run, or its ``checkpoints``.

    Raises:
        UserError: the workdir has no checkpoint, or they can't be read.
    """
    directory = run_or_checkpoint / "checkpoints"
    is_checkpoint = (run_or_checkpoint / "metadata.json").exists()
    if is_checkpoint or not run_or_checkpoint.is_dir():
        return run_or_checkpoint
    if not directory.is_dir():
        directory = run_or_checkpoint
    run, failure = Retention(directory, 1, "auc"), None
    steps = run.steps()
    if not steps and directory == run_or_checkpoint:
        return run_or_checkpoint
    for step in reversed(steps):
        latest = run.path(step)
        try:
            metadata = read_metadata(latest)
            config = trained_config(latest, metadata)
        except DamagedCheckpointError as error:
            failure = failure or error
            continue
        is_towers = "retrieval" in metadata["identity"]
        metric = _first_recall(run) if is_towers else config.best_metric
        best = dataclasses.replace(run, best_metric=metric).best()
        return latest if best is None else run.path(best)
    raise failure or UserError(
        f"{run_or_checkpoint} has no checkpoint in checkpoints/; train it first"
    )


def _first_recall(run: Retention) -> str:
    """The metric that decides which checkpoint of two towers is best: their first recall.

    Checkpoints note no k but in their metrics. The latest counts: a run may resume with another.
    """
    found = reversed(run.validations().values())
    return next((name for each in found for name in each if name.startswith("recall@")), "recall")


@contextlib.contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Context in which a checkpoint is read that its run, which goes on, may delete meanwhile.

    Args:
        checkpoint: directory of a checkpoint, which was there when the context began.

    Raises:
        UserError: it has gone; the message names the latest one.
    """
    try:
        yield
    except (UserError, OSError) as error:
        if checkpoint.is_dir():
            raise
        steps = Retention(checkpoint.parent, 1, "auc").steps()
        latest = f"; the latest is {checkpoint.parent / f'{steps[-1]:08d}'} now" if steps else ""
        raise UserError(
            f"checkpoint {checkpoint} has gone while it was read: a run deletes those that are "
            f"neither its latest nor its best{latest}. Run the same command again, or copy the "
            f"checkpoint first"
        ) from error

"""What maps raw values to the ids of a model: a run keeps it, to be served without its data.

``WORKDIR/preprocessing`` holds ``metadata.json`` and ``vocabularies/`` of the prepared data.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl

from dlrm_jax.data.directory import METADATA, VOCABULARIES, Metadata
from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing
from dlrm_jax.processes import on_process_0


def keep(directory: Path, fingerprint: str, workdir: Path) -> None:
    """Copies what maps values to ids to a run's workdir, whole or not at all.

    Hard links take its place where the file system allows. What is there already of the same data
    is left as it is. Of several processes, process 0 does it.

    Args:
        directory: of the prepared data, see `data.directory`.
        fingerprint: of the data that the run is of.
        workdir: of the run.

    Raises:
        UserError: it can't be read or written, or another process has put other data there.
    """
    on_process_0(lambda: _keep(directory, fingerprint, workdir / "preprocessing"))


def _keep(directory: Path, fingerprint: str, kept: Path) -> None:
    try:
        if kept.exists() and Metadata.read(kept).fingerprint == fingerprint:
            return
        # Those of other data are of a run that ended before its first checkpoint.
        with replacing(kept) as writing:
            writing.mkdir()
            shutil.copy2(directory / METADATA, writing / METADATA)
            shutil.copytree(directory / VOCABULARIES, writing / VOCABULARIES, copy_function=_link)
            if Metadata.read(writing).fingerprint != fingerprint:
                raise UserError(f"{directory} was replaced by other data meanwhile; start again")
    except (OSError, shutil.Error) as error:
        raise UserError(
            f"cannot keep the vocabularies of {directory} in {kept.parent}: {error}; are they "
            f"there, and is the disk large enough?"
        ) from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def find_kept(checkpoint: Path) -> Path | None:
    """Where the run of a checkpoint keeps them, or None if it doesn't."""
    kept = checkpoint.absolute().parent.parent / "preprocessing"
    return kept if kept.is_dir() else None


def check_same_data(directory: Path, checkpoint: Path, fingerprint: str) -> Metadata:
    """Reads the description of a directory whose ids must be those of a checkpoint.

    Args:
        directory: of prepared data, or what `keep` made of it.
        checkpoint: for the message.
        fingerprint: of the data that the checkpoint was trained on.

    Raises:
        UserError: it is of other data.
    """
    metadata = Metadata.read(directory)
    if metadata.fingerprint != fingerprint:
        raise UserError(
            f"{directory} isn't of the data that {checkpoint} was trained on: its ids mean other "
            f"values. Give raw logs, which are mapped to the ids of training, or a directory of "
            f"the very data of training"
        )
    return metadata


def read_values(directory: Path, table: int) -> pl.DataFrame:
    """The raw values of a table: columns ``value`` and ``id``, in any order.

    Args:
        directory: of prepared data, or what `keep` made of it.
        table: its number, from 0.

    Raises:
        UserError: the vocabulary can't be read.
    """
    path = directory / VOCABULARIES / f"{table}.parquet"
    try:
        return pl.read_parquet(path, columns=["value", "id"], glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"cannot read the vocabulary {path}: {error}") from error

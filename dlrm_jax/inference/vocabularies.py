"""A run's copy of the vocabularies that map raw values to ids, for serving without its data.

``WORKDIR/preprocessing`` contains ``metadata.json`` and ``vocabularies/`` of the prepared data.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import polars as pl

from dlrm_jax.copied_files import copy_directory
from dlrm_jax.data.formats import parquet
from dlrm_jax.data.metadata import METADATA, VOCABULARIES, Metadata, check_unchanged
from dlrm_jax.data.preprocessing.encoding import special_ids
from dlrm_jax.data.preprocessing.vocabulary import check_types
from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing
from dlrm_jax.processes import on_process_0
from dlrm_jax.training.kept_data import KEPT
from dlrm_jax.training.metadata import read_metadata

_STREAM = "stream"
"""What a checkpoint's metadata have if it was trained on a stream."""


def keep(directory: Path, fingerprint: str, workdir: Path) -> None:
    """Copies the vocabularies of prepared data to a run's workdir, completely or not at all.

    A copy of the same data is left as it is. In a run of several processes, process 0 does it.

    Args:
        directory: directory of the prepared data, see `data.directory`.
        fingerprint: fingerprint of the run's data.
        workdir: directory of the run.

    Raises:
        UserError: the files can't be read or written, or another process has replaced the data.
    """
    on_process_0(lambda: _keep(directory, fingerprint, workdir / KEPT))


def _keep(directory: Path, fingerprint: str, copy: Path) -> None:
    try:
        if _is_kept(copy, fingerprint):
            return
        # A copy of other data is left from a run that ended before its first checkpoint.
        with replacing(copy) as temporary:
            temporary.mkdir()
            # No hard links: a change of the data's files would change the run's, too.
            copy_directory(directory / VOCABULARIES, temporary / VOCABULARIES)
            shutil.copy2(directory / METADATA, temporary / METADATA)
            check_unchanged(directory, fingerprint)
    except OSError as error:
        raise UserError(
            f"cannot keep the vocabularies of {directory} in {copy.parent}: {error}; check that "
            f"they exist and that the disk is large enough"
        ) from error


def _is_kept(copy: Path, fingerprint: str) -> bool:
    """Whether a copy is of this data; otherwise it isn't there or may be replaced."""
    if not copy.exists():
        return False
    names = {path.name for path in copy.iterdir()}
    others = names - {METADATA, VOCABULARIES}
    # First, as nothing is written then: a file browser or NFS may have added files.
    if (METADATA in names or not others) and Metadata.read(copy).fingerprint == fingerprint:
        return True
    if others:
        raise UserError(
            f"{copy} has more than vocabularies, such as {min(others)}; move it, or give "
            f"another workdir: the run keeps its vocabularies there"
        )
    return False


def no_vocabularies(model: Path | str, fingerprint: str) -> str:
    """Why a model has no vocabularies, and what the user can do.

    Args:
        model: directory of the model, or words for it.
        fingerprint: fingerprint of the data that it was trained on; empty if it was converted
            without data.
    """
    if not fingerprint:
        return (
            f"{model} was converted without data, so it isn't known what its ids mean. Convert it "
            f"again with --data=DIR, where DIR is prepared data whose ids are the rows of its "
            f"tables. Without, it takes only arrays of ids that have no {METADATA}"
        )
    return (
        f"{model} was trained on data without vocabularies, such as a stream, or isn't in its "
        f"workdir any more. If the data had vocabularies, give the directory of arrays that has "
        f"them as --preprocessing"
    )


def check_same_data(directory: Path, checkpoint: Path, fingerprint: str) -> Metadata:
    """Reads the description of a directory and checks that its ids are those of a checkpoint.

    Args:
        directory: directory of prepared data, or a copy that `keep` made.
        checkpoint: directory of the checkpoint, for messages.
        fingerprint: fingerprint of the data that the checkpoint was trained on.

    Raises:
        UserError: the directory contains other data, or it isn't known which the model needs.
    """
    metadata = Metadata.read(directory)
    if not fingerprint:
        raise UserError(no_vocabularies(checkpoint, fingerprint))
    if metadata.fingerprint != fingerprint:
        if (checkpoint / METADATA).exists() and _STREAM in read_metadata(checkpoint):
            raise UserError(
                f"{checkpoint} was trained on a stream, so the ids of {directory} aren't rows of "
                f"its tables. Give raw logs"
            )
        raise UserError(
            f"{directory} isn't the data that {checkpoint} was trained on: its ids mean other "
            f"values. Give raw logs, which are mapped to the ids of training, or the "
            f"directory of the training data"
        )
    return metadata


def read_values(directory: Path, table: int) -> pl.DataFrame:
    """Reads what the ids of a table stand for, in any order.

    Args:
        directory: directory of prepared data, or a copy that `keep` made.
        table: index of the table, from 0.

    Returns:
        Columns ``value``, ``meaning`` and ``id``: a line for each raw value, with the meaning
        ``"value"``, and one for ``"unseen"`` and ``"missing"`` values, whose value is null.

    Raises:
        UserError: the vocabulary can't be read.
    """
    metadata = Metadata.read(directory)
    path = _file(directory, metadata, table)
    with parquet.reading(f"the vocabulary {path}"):
        values = pl.read_parquet(path, columns=["value", "id"], glob=False)
    check_types(values.schema, path)
    special = special_ids(metadata.made_from["options"].get("compatible", ""))
    others = pl.DataFrame(
        {"value": None, "meaning": list(special), "id": list(special.values())},
        schema={"value": values["value"].dtype, "meaning": pl.String, "id": values["id"].dtype},
    )
    named = values.select("value", pl.lit("value").alias("meaning"), "id")
    return pl.concat([others, named])


def names_of(directory: Path, table: int, ids: Collection[int]) -> dict[int, str]:
    """What some ids of a table stand for, as text for people.

    Only their lines of the vocabulary come into memory.

    Args:
        directory: directory of prepared data, or a copy that `keep` made.
        table: index of the table, from 0.
        ids: the ids.

    Returns:
        By id the raw value; ``(unseen)`` or ``(missing)``; the first value and how many more there
        are, where values share an id; or ``(unused)`` for an id that nothing has.

    Raises:
        UserError: the vocabulary can't be read.
    """
    metadata = Metadata.read(directory)
    path = _file(directory, metadata, table)
    with parquet.reading(f"the vocabulary {path}"):
        lines = pl.scan_parquet(path, glob=False).select("value", "id")
        check_types(lines.collect_schema(), path)
        values = lines.filter(pl.col("id").is_in(list(ids))).collect()
    special = special_ids(metadata.made_from["options"].get("compatible", ""))
    names = dict.fromkeys(ids, "(unused)") | {
        number: f"({meaning})" for meaning, number in special.items() if number in ids
    }
    for (number,), group in values.group_by("id", maintain_order=True):
        more = f" and {len(group) - 1:,} more" if len(group) > 1 else ""
        names[int(str(number))] = f"{group['value'][0]}{more}"
    return names


def _file(directory: Path, metadata: Metadata, table: int) -> Path:
    return directory / VOCABULARIES / f"{metadata.vocabulary_of(table)}.parquet"

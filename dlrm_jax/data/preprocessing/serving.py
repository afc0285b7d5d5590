"""Maps logs through existing vocabularies, for prediction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.directory import METADATA, VOCABULARIES, Metadata
from dlrm_jax.data.preprocessing.conversion import Conversion
from dlrm_jax.data.preprocessing.missing_values import check_missing_values
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.splits import days_by_file
from dlrm_jax.errors import UserError


def encode_logs(paths: Sequence[Path], prepared: Path, output: Path) -> list[Examples]:
    """Makes arrays of logs for prediction, with the ids of a prepared directory.

    Args:
        paths: files of the kind that the directory was made from; labels, sample weights and
            timestamps may be missing.
        prepared: directory with ``metadata.json`` and ``vocabularies/``.
        output: directory for the arrays, which are mapped from there.

    Returns:
        The examples of each file, row by row; their labels are meaningless.

    Raises:
        UserError: a file can't be read or is malformed, or is in MLPerf's binary form and the
            data of training had missing values, which it can't tell from 0; the disk is full.
    """
    metadata = Metadata.read(prepared)
    trained = Options.from_json(metadata.made_from["options"])
    schema = dataclasses.replace(trained.schema, weight=None, timestamp=None)
    # Every line gets a prediction, so none is left out.
    options = dataclasses.replace(trained, schema=schema, on_bad_line="stop", drop_negatives=0.0)
    try:
        conversion = Conversion(output, options, prepared / VOCABULARIES)
        output.mkdir(parents=True)
        files = conversion.stage(paths, labelled=False)
        check_missing_values(paths, files, options, prepared)
        if options.compatible == "torchrec":
            smallest = _smallest(metadata, prepared)
            files = [dataclasses.replace(file, smallest=smallest) for file in files]
        conversion.write(files, days_by_file([file.rows for file in files]), metadata.table_rows)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"cannot make arrays in {output}: {error}") from error
    return [DayFiles.map(output, number).examples for number in range(len(files))]


def _smallest(metadata: Metadata, prepared: Path) -> float:
    """The smallest integer of training, to which TorchRec's dense features are relative."""
    smallest = set(metadata.smallest)
    if not smallest or not all(map(math.isfinite, smallest)):
        raise UserError(
            f"{prepared / METADATA} is damaged: smallest: expected a finite number for each file, "
            f"got {metadata.smallest}; prepare the data again"
        )
    if len(smallest) > 1:
        raise UserError(
            f"TorchRec's dense features are relative to the smallest integer of each file, which "
            f"was {', '.join(map(str, metadata.smallest))} in training: of others they aren't "
            f"defined; prepare training data with our own transform"
        )
    return smallest.pop()

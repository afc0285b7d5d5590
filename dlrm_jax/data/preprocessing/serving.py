"""Maps logs through existing vocabularies, for prediction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.directory import METADATA, VOCABULARIES, Metadata
from dlrm_jax.data.preprocessing.conversion import Conversion
from dlrm_jax.data.preprocessing.missing_values import check_missing_values
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.splits import days_by_file
from dlrm_jax.data.preprocessing.vocabulary import MISSING, UNSEEN
from dlrm_jax.errors import UserError

_ROWS = 1 << 18


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


def unseen_shares(days: Sequence[Examples], prepared: Path) -> dict[str, float]:
    """The share of each column's values that training hadn't, or had too rarely.

    Args:
        days: examples that `encode_logs` has made.
        prepared: directory whose ids it gave them.

    Returns:
        Shares of the values that aren't missing, by column; empty if unseen values have no id of
        their own.
    """
    metadata = Metadata.read(prepared)
    if Options.from_json(metadata.made_from["options"]).compatible:
        return {}
    unseen = np.zeros(len(metadata.columns), np.int64)
    present = np.zeros_like(unseen)
    starts = np.cumsum([0, *metadata.bag_lengths[:-1]])
    for day in days:
        for first in range(0, len(day), _ROWS):
            ids = np.asarray(day.ids[first : first + _ROWS])
            unseen += np.add.reduceat((ids == UNSEEN).sum(0), starts)
            present += np.add.reduceat(((ids >= 0) & (ids != MISSING)).sum(0), starts)
    counts = zip(metadata.columns, unseen.tolist(), present.tolist(), strict=True)
    return {name: few / many for name, few, many in counts if many}


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

"""Dense columns in units of their standard deviation, relative to their mean in training."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dlrm_jax.data.formats import parquet
from dlrm_jax.data.metadata import VOCABULARIES
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing

_log = logging.getLogger(__name__)

SCALES = f"{VOCABULARIES}/dense.parquet"
"""Name of the file of the scales."""

_ROUNDING = 1e-12
"""The deviation, relative to the mean, up to which it is of rounding.

Each number is rounded by up to 1.1e-16 of itself, so equal numbers have a deviation of that size,
not 0. A deviation above this limit has four digits that aren't of rounding.
"""


@dataclasses.dataclass(frozen=True)
class Scales:
    """Mean and standard deviation of columns ``d0``, ``d1``, … as far as they are standardized.

    Attributes:
        scales: mean and positive deviation, by column.
    """

    scales: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def applied(self, dense: pl.DataFrame) -> pl.DataFrame:
        """Standardizes dense columns; a missing number becomes the mean, 0."""
        if not self.scales:
            return dense
        return dense.with_columns(
            standardized(pl.col(name), pl.lit(mean), pl.lit(deviation))
            for name, (mean, deviation) in self.scales.items()
        )


def standardized(x: pl.Expr, mean: pl.Expr, deviation: pl.Expr) -> pl.Expr:
    """Numbers in units of a deviation; a missing one becomes the mean, 0."""
    return ((x.fill_null(mean) - mean) / deviation).cast(pl.Float32)


def learn_scales(
    directory: Path,
    schema: Schema,
    files: Sequence[pl.LazyFrame],
    training: Sequence[int],
    known: Path | None,
) -> None:
    """Writes the scales of the columns that the schema standardizes; an existing file stays.

    Args:
        directory: directory of the arrays, with ``vocabularies/``.
        schema: meaning of the columns.
        files: rows of each file, as `columns` describes them.
        training: number of rows of each file, from the first one, that are for training.
        known: directory whose scales are kept, for data that grow; None to learn them.
    """
    names = schema.standardized
    path = directory / SCALES
    if not names or path.exists():
        return
    if known:
        found = _read(known, schema)
    else:
        rows = [frame.head(count) for frame, count in zip(files, training, strict=True) if count]
        columns = {name: pl.col(f"d{schema.dense.index(name)}") for name in names}
        of_all = pl.concat([frame.select(**columns) for frame in rows])
        parts = [pl.all().mean().name.suffix(" m"), pl.all().std(ddof=0).name.suffix(" s")]
        row = of_all.select(*parts).collect(engine="streaming").row(0, named=True)
        means = [row[f"{name} m"] or 0.0 for name in names]
        pairs = zip(means, [row[f"{name} s"] or 0.0 for name in names], strict=True)
        deviations = [_unit(*pair) for pair in pairs]
        found = pl.DataFrame({"column": names, "mean": means, "deviation": deviations})
    with replacing(path) as temporary, parquet.writing(path):
        found.write_parquet(temporary)


def read_scales(directory: Path, schema: Schema) -> Scales:
    """Reads what `learn_scales` wrote to a directory; nothing if no column is standardized.

    Raises:
        UserError: the file can't be read, or is of other columns.
    """
    if not schema.standardized:
        return Scales()
    found = _read(directory, schema)
    scales: dict[str, tuple[float, float]] = {}
    for name, mean, deviation in found.iter_rows():
        unit = _unit(mean, deviation)
        scales[f"d{schema.dense.index(name)}"] = mean, unit
        if unit != deviation:  # earlier versions wrote it
            _log.warning(
                "%s: column %s has the one number %.10g in training, and its deviation %.3g is of "
                "rounding: it counts as 1. A model of these data may have been trained on other "
                "numbers of this column; to correct both, prepare the data and train again",
                directory / SCALES, name, mean, deviation,
            )  # fmt: skip
    return Scales(scales)


def _unit(mean: float, deviation: float) -> float:
    """The deviation; 1 for a column of one number, as far as can be told, or of none."""
    return deviation if deviation > _ROUNDING * abs(mean) else 1.0


def _read(directory: Path, schema: Schema) -> pl.DataFrame:
    path = directory / SCALES
    with parquet.reading(f"the scales {path}"):
        found = pl.read_parquet(path, glob=False).select("column", "mean", "deviation")
    if tuple(found["column"]) != schema.standardized:
        raise UserError(
            f"{path}: expected the columns {', '.join(schema.standardized)}, which the schema "
            f"standardizes, got {', '.join(map(str, found['column']))}"
        )
    return found

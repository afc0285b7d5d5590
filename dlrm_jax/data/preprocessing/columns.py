"""The columns of a schema under numbered names, with transformed dense features.

``label`` (``label0``, ``label1``, … of several), ``d0``, ``d1``, … (float32; float64 if they will
be standardized), ``c0``, ``c1``, … (raw values) and, if the schema has them, ``weight``, ``time``
(microseconds since 1970) and ``group0``, … (codes). Missing values are null.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32

from dlrm_jax.data.preprocessing import few_rows
from dlrm_jax.data.preprocessing.hashed_values import group_codes
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.standardization import Scales
from dlrm_jax.errors import UserError, shown

_INT32 = np.iinfo(np.int32)
_ENCODED = (pl.Categorical, pl.Enum)


def normalize_columns(
    frame: pl.DataFrame, options: Options, path: Path | str, first_row: int
) -> pl.DataFrame:
    """Names and transforms the columns of a frame.

    TorchRec's dense features depend on the smallest integer of the file, which isn't known yet:
    these columns stay integers until `transform_dense`.

    The path and the number of the first row are for messages; malformed rows before it that were
    left out aren't counted.

    Raises:
        UserError: an integer is too large for TorchRec's transform.
    """
    schema = options.schema
    if options.compatible == "torchrec":
        for name in schema.dense:
            wrong = ~frame[name].is_between(_INT32.min + 2, _INT32.max).fill_null(True)
            if wrong.any():
                row = wrong.arg_max() or 0
                raise UserError(
                    f"{path}, row {first_row + row}, column {name}: expected an integer of 32 "
                    f"bits, as TorchRec has them, got {shown(frame[name][row])}"
                )
    columns: list[pl.Expr | pl.Series] = [
        *(
            pl.col(x).cast(pl.Float32).alias(y)
            for x, y in zip(schema.labels, label_columns(schema), strict=True)
        ),
        *(_dense(frame, x, options).alias(f"d{i}") for i, x in enumerate(schema.dense)),
        *(_categorical(frame, x, options).alias(f"c{i}") for i, x in enumerate(schema.categorical)),
    ]
    if schema.weight:
        columns.append(pl.col(schema.weight).cast(pl.Float32).alias("weight"))
    if schema.timestamp:
        columns.append(pl.col(schema.timestamp).alias("time"))
    for i, name in enumerate(schema.groups):
        columns.append(pl.Series(f"group{i}", group_codes(frame[name])))
    return few_rows.select(frame, columns)


def label_columns(schema: Schema) -> list[str]:
    """The numbered names of the labels."""
    count = len(schema.labels)
    return ["label"] if count == 1 else [f"label{i}" for i in range(count)]


def label_arrays(
    rows: pl.DataFrame, schema: Schema
) -> Float32[np.ndarray, " N"] | Float32[np.ndarray, "N H"]:
    """The labels of rows, [N], or [N, H] if there are several; NaN where there is none."""
    labels = few_rows.select(rows, [pl.col(label_columns(schema)).fill_null(math.nan)]).to_numpy()
    return labels[:, 0] if labels.shape[1] == 1 else np.ascontiguousarray(labels)


def transform_dense(
    dense: pl.DataFrame, options: Options, smallest: float, scales: Scales
) -> Float32[np.ndarray, "N D"]:
    """Applies the transforms that depend on all rows of a file, or of training, to dense columns.

    Args:
        dense: columns of `normalize_columns`; nulls count as 0, standardized ones as the mean.
        options: options of the data.
        smallest: smallest number of the whole file in these columns.
        scales: scales of the columns that are standardized.
    """
    array = scales.applied(dense).fill_null(0).to_numpy()
    if options.compatible == "torchrec":
        # As TorchRec's tsv_to_npys: int32 differences, logarithms in float32.
        return np.log(array - np.int32(int(smallest) - 2), dtype=np.float32)
    return array


def _dense(frame: pl.DataFrame, name: str, options: Options) -> pl.Expr | pl.Series:
    x = pl.col(name)
    if options.compatible == "torchrec":
        return x.cast(pl.Int32)
    if options.compatible == "reference":
        # NumPy's logarithm in float32, as there; null becomes NaN and back.
        raised = frame[name].clip(lower_bound=0).cast(pl.Float32).to_numpy() + np.float32(1)
        return pl.Series(name, np.log(raised), nan_to_null=True)
    return transformed(x.cast(pl.Float64), options.schema.transform_of(name))


def transformed(x: pl.Expr, transform: str) -> pl.Expr:
    """Applies a transform of `Schema` to float64, as far as each number is transformed alone."""
    if transform.startswith("log"):
        x = x.clip(lower_bound=0).log1p()
    # Standardized ones keep their digits until the mean is subtracted.
    return x if transform.endswith("standardize") else x.cast(pl.Float32)


def _categorical(frame: pl.DataFrame, name: str, options: Options) -> pl.Expr:
    x, kind = pl.col(name), frame[name].dtype
    length = options.schema.bag_lengths.get(name)
    if length is not None:
        if kind == pl.Null:
            return x.cast(pl.List(pl.Null))
        if isinstance(kind, pl.Array):
            x = x.arr.to_list()
        x = x.list.head(length)
        kind = kind.inner  # pyright: ignore[reportAttributeAccessIssue]
        return x.cast(pl.List(pl.String)) if kind in _ENCODED else x
    if kind.is_float():
        x = x.fill_nan(None)
    if kind in _ENCODED:  # two files may encode the same strings otherwise
        return x.cast(pl.String)
    if options.compatible == "reference" and options.max_ind_range:
        return x % options.modulus(options.schema.categorical.index(name))
    return x

"""The tensors of a model in the Open Inference Protocol: a column each, or ids as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from dlrm_jax.data.arrays import ABSENT, Examples, Split
from dlrm_jax.data.preprocessing.raw_ids import ABSENT_ID
from dlrm_jax.errors import UserError, cut, shown
from dlrm_jax.inference.probabilities import probability_columns
from dlrm_jax.serving.column_rows import rows_of_columns
from dlrm_jax.serving.served_model import DENSE, IDS, Rows, ServedModel, examples_of
from dlrm_jax.serving.served_version import ServedVersion


def model_metadata(name: str, versions: list[str], model: ServedVersion[Any]) -> dict[str, Any]:
    """What the protocol says about a model."""
    return {
        "name": name,
        "versions": versions,
        "platform": "dlrm_jax",
        "inputs": model.inputs(),
        "outputs": model.outputs(),
    }


def rows_of(
    model: ServedModel, tensors: Mapping[str, np.ndarray], known_only: bool = False
) -> Rows | None:
    """The rows of a request with ids.

    Args:
        model: model that they are for.
        tensors: ``dense`` [N, D] and ``ids`` [N, C], which negative numbers are absent of; of a
            stream's model they have 64 bits, see `IdRows`, and null is absent. Or for a model that
            takes raw rows a tensor [N] for each column, and [N, L] for bags, or [1] and [1, L] for
            what all rows share. NaN, empty text and masked ones are missing values.
        known_only: whether to give None for values whose ids must be looked for, which
            takes milliseconds.

    Raises:
        UserError: an input is missing, unknown, or has another type or shape.
    """
    if IDS in tensors and not (model.takes_raw_rows and IDS in model.predictor.encoder.columns):
        return Rows(_encoded(model, tensors))
    if not model.takes_raw_rows:
        raise UserError(
            f"inputs: the model has no vocabularies, so it takes {DENSE} and {IDS}, got "
            f"{cut(', '.join(tensors)) or 'none'}"
        )
    encoder = model.predictor.encoder
    schema, names = encoder.options.schema, encoder.columns
    _check_names(tensors, names)
    counts = {name: len(array) for name, array in tensors.items()}
    count = max(counts.values()) if min(counts.values()) else 0
    if not {*counts.values()} <= {count, 1}:
        each = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(f"inputs: expected as many rows of each, or 1, got {each}")
    bags = schema.bag_lengths
    for name in schema.numbers:
        if tensors[name].dtype == np.bool_:
            raise UserError(f"input {name}: expected numbers, such as FP32, got BOOL")
    columns = {name: _column(name, tensors[name], name in bags) for name in names}
    return rows_of_columns(model, columns, count, known_only)


def outputs_of(
    model: ServedVersion[Any], probabilities: Float64[np.ndarray, "N *_"]
) -> dict[str, np.ndarray]:
    """The outputs by name, [N] each."""
    names = probability_columns(model.labels)
    columns = probabilities.reshape(len(probabilities), len(names)).T
    return dict(zip(names, columns, strict=True))


def _encoded(model: ServedModel, tensors: Mapping[str, np.ndarray]) -> Examples:
    inputs = model.predictor.scorer.inputs
    names = [DENSE, IDS] if inputs.dense_features else [IDS]
    _check_names(tensors, names)
    given, width = tensors[IDS], sum(inputs.bag_lengths)
    kinds = (np.int64, np.uint64) if inputs.has_raw_ids else (np.int32, np.int64)
    if given.dtype not in kinds or given.ndim != 2 or given.shape[1] != width:
        raise UserError(
            f"input {IDS}: expected {' or '.join(x.__name__.upper() for x in kinds)} [N, {width}], "
            f"got {given.dtype} of shape {list(given.shape)}"
        )
    if inputs.has_raw_ids:
        mask = np.ma.getmaskarray(given)
        bits = np.ascontiguousarray(np.ma.getdata(given)).view(np.uint64)
        ids = np.where(mask, np.uint64(ABSENT_ID), bits).view(np.int64)
    else:
        ids = np.ma.filled(given, ABSENT)
    if ids.dtype == np.int64 and not inputs.has_raw_ids:
        wide = np.iinfo(np.int32)
        if ids.size and not (wide.min <= ids.min() and ids.max() <= wide.max):
            raise UserError(f"input {IDS}: expected numbers of 32 bits")
        ids = ids.astype(np.int32)
    dense = tensors.get(DENSE, np.zeros((len(ids), 0), np.float32))
    if dense.dtype != np.float32 or dense.ndim != 2:
        raise UserError(f"input {DENSE}: expected FP32 [N, D], got {list(dense.shape)}")
    if len(dense) != len(ids):
        raise UserError(f"inputs: expected as many rows of each, got {len(dense)} and {len(ids)}")
    examples = examples_of(dense, ids)
    inputs.check_dense(Split((examples,)))
    return examples


def _check_names(tensors: Mapping[str, np.ndarray], names: list[str]) -> None:
    if unknown := sorted(set(tensors) - set(names)):
        raise UserError(
            f"inputs: there is no {shown(unknown[0])}, the model has {', '.join(names)}"
        )
    if missing := [x for x in names if x not in tensors]:
        raise UserError(f"inputs: {missing[0]!r} is missing, the model has {', '.join(names)}")


def _column(name: str, array: np.ndarray, is_bag: bool) -> pl.Series:
    if is_bag and array.ndim != 2:  # [2] could be two rows or one list
        raise UserError(
            f"input {name}: expected a list for each row, [N, L], or [1, L] for what all rows "
            f"share, got the shape {list(array.shape)}"
        )
    if array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1 and not is_bag):
        raise UserError(
            f"input {name}: expected a value for each row, got the shape {list(array.shape)}"
        )
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype == object:
        array = array.copy()
        array[array == ""] = None
    flat = array.reshape(-1)
    has_none = flat.dtype == object or np.ma.is_masked(flat)
    if has_none and all(x is None for x in flat.tolist()):  # then any column may have it
        kind: Any = pl.Null()
    else:
        kind = pl.String() if flat.dtype == object else pl.Series(flat[:0]).dtype
    if is_bag:
        return pl.Series(name, map(_without_padding, array.tolist()), pl.List(kind))
    if has_none:
        return pl.Series(name, flat.tolist(), kind)
    return pl.Series(name, flat, nan_to_null=flat.dtype.kind == "f")


def _without_padding(bag: list[Any]) -> list[Any]:
    """A bag without the missing values at its end, which fill it up to the longest."""
    while bag and (bag[-1] is None or bag[-1] != bag[-1]):
        bag.pop()
    return bag

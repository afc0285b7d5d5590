"""Padding, concatenation and checks of bags of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32, Integer, Shaped

from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError


class Ragged(NamedTuple):
    """Bags of different lengths, one after the other.

    Attributes:
        values: ids of all bags, [N].
        lengths: number of ids of each bag, [B]; they sum to N.
    """

    values: Any
    lengths: Any


def id_array(features: Sequence[Feature], ids: Any, fill: int) -> Any:
    """Concatenates bags by feature name into one id array; returns an id array unchanged.

    Args:
        features: features in the order of their columns.
        ids: ids or id weights, NumPy or JAX: an array [B, C], or bags by feature name, each [B, L]
            with L ≤ max_ids, or [B] for one id a sample.
        fill: value where a bag is narrower than its feature: -1 for ids, 0 for weights.

    Returns:
        The array [B, C], of NumPy if all arrays are.

    Raises:
        UserError: a feature is missing or unknown, or an array has another shape or dtype.
    """
    if not isinstance(ids, Mapping):
        return ids
    what = "ids" if fill else "id_weights"
    names = [feature.name for feature in features]
    if ids.keys() != set(names):
        raise UserError(
            f"{what}: expected the features {', '.join(names)}; got {', '.join(ids) or 'none'}"
        )
    columns = [_columns(feature, ids[feature.name], fill) for feature in features]
    sizes = {feature.name: len(x) for feature, x in zip(features, columns, strict=True)}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"{what}: expected the same number of samples of every feature, got {sizes}"
        )
    dtypes = {x.dtype for x in columns}
    if len(dtypes) > 1:  # concatenation would promote them: int64 and uint64 to float64
        raise UserError(f"{what}: expected one dtype, got {', '.join(sorted(map(str, dtypes)))}")
    host = all(isinstance(x, np.ndarray) for x in columns)
    return np.concatenate(columns, axis=1) if host else jnp.concatenate(columns, axis=1)


def _columns(feature: Feature, ids: Any, fill: int) -> Any:
    """One feature's bags, padded to its width."""
    array = ids if isinstance(ids, np.ndarray | jax.Array) else np.asarray(ids)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] > feature.max_ids:
        raise UserError(
            f"feature {feature.name}: expected [B] or [B, L] with at most {feature.max_ids} ids, "
            f"got {list(np.shape(ids))}"
        )
    missing = feature.max_ids - array.shape[1]
    if not missing:
        return array
    pad = np.pad if isinstance(array, np.ndarray) else jnp.pad
    return pad(array, [(0, 0), (0, missing)], constant_values=fill)


def pad_bags(
    values: Integer[np.ndarray, " N"],
    lengths: Integer[np.ndarray, " B"],
    max_ids: int,
    id_weights: Float[np.ndarray, " N"] | None = None,
) -> tuple[Int32[np.ndarray, "B L"], Float32[np.ndarray, "B L"] | None]:
    """Turns concatenated bags into one padded row per sample.

    A bag of more than ``max_ids`` ids is truncated to its *first* ``max_ids`` ids. Order the ids
    beforehand if others matter more, such as the latest of a history.

    Args:
        values: ids of all bags, [N], one bag after the other.
        lengths: number of ids of each bag, [B]; they sum to N.
        max_ids: width L of the result.
        id_weights: weight of each id, [N]; None for none.

    Returns:
        Ids padded with -1, and their weights padded with 0 (None without weights).

    Raises:
        UserError: max_ids is less than 1, lengths are negative or don't sum to N, an id is
            negative or too large for int32, the number of weights isn't N, or an array has another
            type.
    """
    values, lengths = np.asarray(values), np.asarray(lengths)
    for name, array in (("ids", values), ("lengths", lengths)):
        if array.size and array.dtype.kind not in "iu":
            raise UserError(f"{name}: expected integers, got {array.dtype}")
    if max_ids < 1:
        raise UserError(f"max_ids must be at least 1, got {max_ids}")
    if lengths.size and lengths.min() < 0:
        raise UserError(f"lengths must not be negative, got {lengths.min()}")
    if lengths.size and lengths.max() > len(values):  # their sum might wrap
        raise UserError(f"a bag has the length {lengths.max()} but there are {len(values)} ids")
    lengths = lengths.astype(np.int64)
    if lengths.sum() != len(values):
        raise UserError(f"lengths sum to {lengths.sum()} but there are {len(values)} ids")
    if len(values) and not 0 <= values.min() <= values.max() < 2**31:
        raise UserError(f"ids must lie in 0..2^31-1, got {values.min()}..{values.max()}")
    if id_weights is not None:
        id_weights = np.asarray(id_weights)
        if id_weights.shape != values.shape:
            raise UserError(f"{len(values)} ids need as many weights, got shape {id_weights.shape}")
        if id_weights.dtype.kind != "f":
            raise UserError(
                f"id_weights: expected floating numbers, got {id_weights.dtype}; cast to float32"
            )
    ends = np.cumsum(lengths)
    column = np.arange(max_ids)
    present = column < lengths[:, None]
    source = np.where(present, (ends - lengths)[:, None] + column, 0)

    def padded(array: np.ndarray, fill: int, dtype: type) -> np.ndarray:
        array = array if len(array) else np.zeros(1, dtype)  # indexing needs an element
        return np.where(present, array[source], fill).astype(dtype)

    return (
        padded(values, -1, np.int32),
        None if id_weights is None else padded(id_weights, 0, np.float32),
    )


def check_batch(
    devices: int,
    features: Sequence[Feature],
    ids: Shaped[Array | np.ndarray, "..."],
    id_weights: Shaped[Array | np.ndarray, "..."] | None,
    processes: int = 1,
) -> None:
    """See `EmbeddingCollection.lookup`; each of so many processes has as many samples."""
    columns = sum(feature.max_ids for feature in features)
    if ids.ndim != 2 or ids.shape[1] != columns:
        raise UserError(
            f"ids: expected [B, {columns}], the max_ids of {len(features)} feature(s) side by "
            f"side, got {list(ids.shape)}"
        )
    if not jnp.issubdtype(ids.dtype, jnp.signedinteger) or ids.dtype.itemsize < 4:
        # In a narrower or unsigned type neither -1 nor the number of rows may exist.
        raise UserError(
            f"ids: expected signed integers of 32 bits or more, got {ids.dtype}; "
            f"EmbeddingCollection.put takes all integer types"
        )
    if id_weights is not None and id_weights.shape != ids.shape:
        raise UserError(
            f"id_weights: expected one for each id, {list(ids.shape)}, got {list(id_weights.shape)}"
        )
    if id_weights is not None and id_weights.dtype not in (np.float32, np.float64):
        raise UserError(f"id_weights: expected float32, got {id_weights.dtype}; cast them")
    if ids.shape[0] * processes % devices:
        raise UserError(
            f"ids: {ids.shape[0]} samples can't be split evenly over the {devices} devices of the "
            f"mesh; EmbeddingCollection.pad_batch fills them up"
        )


def check_weights(
    id_weights: Float[np.ndarray, "B C"],
    ids: Int[np.ndarray, "B C"],
    features: Sequence[Feature],
) -> None:
    """Checks that the weights of ids that are present are finite in float32.

    Raises:
        UserError: one isn't; the message names its sample and feature.
    """
    # NaN isn't, either.
    bad = (ids >= 0) & ~(np.abs(id_weights) <= np.finfo(np.float32).max)
    if bad.any():
        sample, column = np.argwhere(bad)[0]
        names = [feature.name for feature in features for _ in range(feature.max_ids)]
        raise UserError(
            f"id_weights, sample {sample}: expected finite numbers, got "
            f"{id_weights[sample, column]} for feature {names[column]}"
        )


def check_ids(
    ids: Int[np.ndarray, "B C"],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    tables: Mapping[str, Table],
) -> None:
    """See `EmbeddingCollection.check_ids`."""
    start = 0
    for feature in features:
        columns = ids[:, start : start + feature.max_ids]
        start += feature.max_ids
        for lookup in lookups:
            if lookup.feature != feature.name:
                continue
            mapped = columns if lookup.id_map is None else lookup.id_map(columns)
            rows = tables[lookup.table].rows
            bad = (columns < -1) | ((columns >= 0) & ((mapped < 0) | (mapped >= rows)))
            if bad.any():
                sample, column = np.argwhere(bad)[0]
                raise UserError(
                    f"feature {feature.name}, sample {sample}: id {columns[sample, column]} is out "
                    f"of range; table {lookup.table} has ids 0..{rows - 1}, and -1 stands for "
                    f"absent"
                )
    if ids.shape[1] != start:
        raise UserError(f"expected {start} id columns, got {ids.shape[1]}")

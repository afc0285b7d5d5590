"""Batches of ids on their way to the mesh: checked, padded, placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Int32

from dlrm_jax.embedding.bags import Ragged, check_ids, id_matrix, pad_bags
from dlrm_jax.embedding.table import Feature
from dlrm_jax.errors import UserError

if TYPE_CHECKING:
    from dlrm_jax.embedding.collection import EmbeddingCollection

Placed = tuple[Any, ...]
"""Ids, then the other arrays of the same samples."""


def put_ids(collection: EmbeddingCollection, ids: Any, id_weights: Any, check: bool) -> Any:
    """See `EmbeddingCollection.put`."""
    features = collection.features
    if isinstance(ids, Mapping):
        ids, id_weights = _padded(features, ids, id_weights)
    matrix = host_ids(features, ids)
    if check:
        check_ids(matrix, features, collection.lookups, collection.tables)
    if len(matrix) * jax.process_count() % collection.axes.parts:
        raise UserError(
            f"ids: {len(matrix)} samples can't be split evenly over the {collection.axes.parts} "
            f"devices of the mesh; pad_batch fills them up"
        )
    sharding = collection.axes.sharding(collection.axes.batch)
    placed = jax.make_array_from_process_local_data(sharding, matrix)
    if id_weights is None:
        return placed
    weights = np.asarray(id_matrix(features, id_weights, fill=0))
    if not np.issubdtype(weights.dtype, np.floating):
        raise UserError(f"id_weights: expected floating numbers, got {weights.dtype}")
    return placed, jax.make_array_from_process_local_data(sharding, weights)


def host_ids(features: Sequence[Feature], ids: Any) -> Int32[np.ndarray, "B C"]:
    """Ids in the form in which a step reads them.

    Args:
        features: features in the order of their columns.
        ids: a matrix or arrays by feature name, of any integer types; negative is absent.

    Raises:
        UserError: ids aren't integers, or one doesn't fit, where a cast would make another of it.
    """
    if not isinstance(ids, Mapping):
        return _as_int32("ids", ids)
    cast = {name: _as_int32(f"feature {name}", array) for name, array in ids.items()}
    return id_matrix(features, cast, fill=-1)


def _as_int32(name: str, ids: Any) -> Int32[np.ndarray, "..."]:
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{name}: expected integers, got {ids.dtype}")
    if ids.size and (int(ids.max()) > 2**31 - 1 or int(ids.min()) < -(2**31)):
        raise UserError(f"{name}: expected 32-bit numbers, got {ids.min()} to {ids.max()}")
    return ids.astype(np.int32, copy=False)


def pad_batch(features: Sequence[Feature], multiple: int, ids: Any, *arrays: Any) -> Placed:
    """See `EmbeddingCollection.pad_batch`.

    Args:
        features: features of the ids.
        multiple: number that is to divide the batch.
        ids: ids of B samples.
        arrays: arrays [B, ...].
    """
    matrix = host_ids(features, ids)
    count = len(matrix)
    for array in arrays:
        if len(array) != count:
            raise UserError(f"arrays: expected {count} samples as of the ids, got {len(array)}")
    padding = -count % multiple

    def padded(array: Any, fill: int) -> np.ndarray:
        array = np.asarray(array)
        return np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), constant_values=fill)

    weights = padded(np.ones(count, np.float32), 0)
    return (padded(matrix, -1), *(padded(array, 0) for array in arrays), weights)


def _padded(features: Sequence[Feature], ids: Mapping[str, Any], weights: Any) -> tuple[Any, Any]:
    """Ragged bags as padded ones, and their weights."""
    width = {feature.name: feature.max_ids for feature in features}
    ids, weights = dict(ids), None if weights is None else dict(weights)
    for name, value in ids.items():
        if isinstance(value, Ragged) and name in width:
            own = None if weights is None else weights.get(name)
            if isinstance(own, Ragged):
                if not np.array_equal(own.lengths, value.lengths):
                    raise UserError(
                        f"id_weights of {name}: expected the lengths of its ids, got others; "
                        f"weights would go to ids of other bags"
                    )
                own = own.values
            ids[name], padded = pad_bags(value.values, value.lengths, width[name], own)
            if weights is not None:
                weights[name] = padded
    return ids, weights

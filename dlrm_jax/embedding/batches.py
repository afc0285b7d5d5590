"""Checks, padding and placement of batches of ids."""

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
    weights = _host_weights(features, ids, id_weights)
    if not np.issubdtype(weights.dtype, np.floating):
        raise UserError(f"id_weights: expected floating numbers, got {weights.dtype}")
    return placed, jax.make_array_from_process_local_data(sharding, weights)


def host_ids(features: Sequence[Feature], ids: Any) -> Int32[np.ndarray, "B C"]:
    """Casts ids to the matrix that a step reads.

    Args:
        features: features in the order of their columns.
        ids: a matrix, or arrays and `Ragged` bags by feature name, of any integer dtypes; negative
            is absent.

    Raises:
        UserError: ids aren't integers, or one doesn't fit into int32.
    """
    if not isinstance(ids, Mapping):
        return _as_int32("ids", ids)
    width = {feature.name: feature.max_ids for feature in features}
    cast = {}
    for name, bags in ids.items():
        what = f"feature {name}"
        if isinstance(bags, Ragged) and name in width:
            values, lengths = _as_int32(what, bags.values), _as_int32(what, bags.lengths)
            cast[name], _ = pad_bags(values, lengths, width[name])
        else:
            cast[name] = _as_int32(what, bags)
    return id_matrix(features, cast, fill=-1)


def _host_weights(features: Sequence[Feature], ids: Any, weights: Any) -> np.ndarray:
    """Weights in the form of the ids: a matrix, or by feature name, ragged where the ids are."""
    if not isinstance(weights, Mapping):
        return np.asarray(weights)
    found = dict(weights)
    for feature in features:
        bags, own = ids[feature.name] if isinstance(ids, Mapping) else None, found.get(feature.name)
        if isinstance(bags, Ragged) and own is not None:
            if isinstance(own, Ragged) and not np.array_equal(own.lengths, bags.lengths):
                raise UserError(
                    f"id_weights of {feature.name}: expected the lengths of its ids, got others; "
                    f"weights would go to ids of other bags"
                )
            values = np.asarray(own.values if isinstance(own, Ragged) else own)
            own_ids = np.asarray(bags.values), np.asarray(bags.lengths)
            _, found[feature.name] = pad_bags(*own_ids, feature.max_ids, values)
    return np.asarray(id_matrix(features, found, fill=0))


def _as_int32(name: str, ids: Any) -> Int32[np.ndarray, "..."]:
    try:
        ids = np.asarray(ids)
    except ValueError as error:  # lists of different lengths
        raise UserError(
            f"{name}: expected an array, or bags of different lengths as Ragged(values, lengths)"
        ) from error
    if not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{name}: expected integers, got {ids.dtype}")
    if ids.size and (int(ids.max()) > 2**31 - 1 or int(ids.min()) < -(2**31)):
        raise UserError(f"{name}: expected 32-bit numbers, got {ids.min()} to {ids.max()}")
    return ids.astype(np.int32, copy=False)


def pad_batch(features: Sequence[Feature], multiple: int, ids: Any, *arrays: Any) -> Placed:
    """See `EmbeddingCollection.pad_batch`.

    Args:
        features: features in the order of their columns.
        multiple: number that must divide the size of the padded batch.
        ids: ids of B samples.
        arrays: arrays of the same samples, [B, ...].
    """
    matrix = host_ids(features, ids)
    count = len(matrix)
    for array in arrays:
        if len(array) != count:
            raise UserError(f"arrays: expected {count} samples as in ids, got {len(array)}")
    padding = -count % multiple

    def padded(array: Any, fill: int) -> np.ndarray:
        array = np.asarray(array)
        return np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), constant_values=fill)

    weights = padded(np.ones(count, np.float32), 0)
    return (padded(matrix, -1), *(padded(array, 0) for array in arrays), weights)

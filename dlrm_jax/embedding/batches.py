"""Checks, padding and placement of batches of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from dlrm_jax.embedding.bags import Ragged, check_divisible, id_array, pad_bags
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.table import Feature
from dlrm_jax.errors import UserError

Placed = tuple[Any, ...]
"""Ids, then the other arrays of the same samples."""


def put_ids(axes: MeshAxes, ids: np.ndarray, id_weights: np.ndarray | None) -> Any:
    """See `EmbeddingCollection.put`; ids and id weights are checked arrays [B, C]."""
    check_divisible(len(ids), jax.process_count(), axes.device_count)
    sharding = axes.sharding(axes.batch)
    placed = jax.make_array_from_process_local_data(sharding, ids)
    if id_weights is None:
        return placed
    return placed, jax.make_array_from_process_local_data(sharding, id_weights)


def host_ids(features: Sequence[Feature], ids: Any) -> Int32[np.ndarray, "B C"]:
    """Casts ids to the id array that a step reads.

    Args:
        features: features in the order of their columns.
        ids: an id array, or arrays and `Ragged` bags by feature name, of any integer dtypes;
            negative is absent.

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
    return id_array(features, cast, fill=-1)


def host_weights(features: Sequence[Feature], ids: Any, id_weights: Any) -> np.ndarray:
    """The id weights [B, C] that a step reads.

    Args:
        features: features in the order of their columns.
        ids: ids as given to `host_ids`.
        id_weights: id weights in the form of the ids, ragged where the ids are.

    Raises:
        UserError: id weights aren't floating, or bags have other lengths than those of the ids.
    """
    if isinstance(id_weights, Mapping):
        found = dict(id_weights)
        for feature in features:
            bags = ids[feature.name] if isinstance(ids, Mapping) else None
            own = found.get(feature.name)
            if isinstance(bags, Ragged) and own is not None:
                found[feature.name] = _ragged_weights(feature, bags, own)
        id_weights = id_array(features, found, fill=0)
    id_weights = np.asarray(id_weights)
    if not np.issubdtype(id_weights.dtype, np.floating):
        raise UserError(f"id_weights: expected floating numbers, got {id_weights.dtype}")
    return id_weights


def _ragged_weights(feature: Feature, bags: Ragged, own: Any) -> np.ndarray | None:
    """The padded id weights of one feature's ragged bags."""
    if isinstance(own, Ragged) and not np.array_equal(own.lengths, bags.lengths):
        raise UserError(
            f"id_weights of {feature.name}: expected the lengths of its ids, got others; "
            f"weights would go to ids of other bags"
        )
    values = np.asarray(own.values if isinstance(own, Ragged) else own)
    return pad_bags(np.asarray(bags.values), np.asarray(bags.lengths), feature.max_ids, values)[1]


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
    ids = host_ids(features, ids)
    count = len(ids)
    for array in arrays:
        if len(array) != count:
            raise UserError(f"arrays: expected {count} samples as in ids, got {len(array)}")
    padding = -count % multiple

    def padded(array: Any, fill: int) -> np.ndarray:
        array = np.asarray(array)
        return np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), constant_values=fill)

    weights = padded(np.ones(count, np.float32), 0)
    return (padded(ids, -1), *(padded(array, 0) for array in arrays), weights)

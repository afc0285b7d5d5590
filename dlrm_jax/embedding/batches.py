"""Checks, padding and placement of batches of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int32

from dlrm_jax.embedding.bags import (
    Ragged,
    check_batch,
    check_ids,
    check_weights,
    id_array,
    pad_bags,
)
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError

Placed = tuple[Any, ...]
"""Ids, then the other arrays of the same samples."""


def put_ids(
    axes: MeshAxes,
    features: Sequence[Feature],
    ids: Any,
    id_weights: Any,
    described: tuple[Sequence[Lookup], Mapping[str, Table]] | None,
) -> Any:
    """See `EmbeddingCollection.put`; without lookups and tables, values aren't checked."""
    on_host = cast_ids(features, ids)
    if id_weights is not None:
        id_weights = cast_weights(features, ids, id_weights)
    check_batch(axes.device_count, features, on_host, id_weights, jax.process_count())
    if described:
        check_ids(on_host, features, *described)
        if id_weights is not None:
            check_weights(id_weights, on_host, features)
    sharding = axes.sharding(axes.batch)
    placed = jax.make_array_from_process_local_data(sharding, on_host)
    if id_weights is None:
        return placed
    return placed, jax.make_array_from_process_local_data(sharding, id_weights)


def cast_ids(features: Sequence[Feature], ids: Any, *, keep: tuple[type, ...] = ()) -> Any:
    """The id array, int32. JAX would wrap wider numbers without a word.

    Args:
        features: features in the order of their columns.
        ids: an id array, or arrays and `Ragged` bags by feature name, of any integer dtypes;
            negative is absent.
        keep: types of arrays to leave as they are; others are checked and made NumPy arrays.

    Raises:
        UserError: ids aren't integers, or one doesn't fit into int32.
    """

    def cast(what: str, ids: Any) -> Any:
        return ids if isinstance(ids, keep) else _as_int32(what, ids)

    if not isinstance(ids, Mapping):
        array = cast("ids", ids)
        if array.ndim != 2:
            columns = sum(feature.max_ids for feature in features)
            raise UserError(
                f"ids: expected [B, {columns}], the bags side by side, got {list(array.shape)}"
            )
        return array
    width = {feature.name: feature.max_ids for feature in features}
    found = {}
    for name, bags in ids.items():
        if isinstance(bags, Ragged) and name in width:
            found[name], _ = pad_bags(*_ragged(name, bags), width[name])
        else:
            found[name] = cast(f"feature {name}", bags)
    return id_array(features, found, fill=-1)


def cast_weights(
    features: Sequence[Feature], ids: Any, id_weights: Any, *, keep: tuple[type, ...] = ()
) -> Any:
    """The id weights [B, C], float32, or float64 where they are.

    Args:
        features: features in the order of their columns.
        ids: ids as given to `cast_ids`.
        id_weights: id weights in the form and shapes of the ids, ragged where the ids are.
        keep: types of arrays to leave as they are; others are checked and made NumPy arrays.

    Raises:
        UserError: id weights aren't floating, or have other shapes or lengths than the ids.
    """

    def cast(weights: Any) -> Any:
        return weights if isinstance(weights, keep) else _as_floats("id_weights", weights)

    if not isinstance(id_weights, Mapping):
        return cast(id_weights)
    found = {}
    widths = {feature.name: feature.max_ids for feature in features}
    for name, own in id_weights.items():
        bags = ids.get(name) if isinstance(ids, Mapping) else None
        if isinstance(bags, Ragged) and name in widths:
            found[name] = _ragged_weights(name, bags, own, widths[name])
            continue
        if isinstance(own, Ragged):
            raise UserError(
                f"id_weights of {name}: expected an array like its ids, got Ragged; pad_bags pads "
                f"ids and their weights alike"
            )
        found[name] = cast(own)
        wanted = widths.get(name) if bags is None else _width(bags)
        if name in widths and _width(found[name]) != wanted:  # padding would be weights of 0
            raise UserError(
                f"id_weights of {name}: expected a weight for each of {wanted} id(s) of a bag, got "
                f"shape {list(found[name].shape)}"
            )
    on_host = {name: x for name, x in found.items() if isinstance(x, np.ndarray)}
    if len({x.dtype for x in on_host.values()}) > 1:  # padded weights of bags have 32 bits
        found |= {name: x.astype(np.float64) for name, x in on_host.items()}
    return id_array(features, found, fill=0)


def _width(bags: Any) -> int:
    """The ids of a bag, of arrays [B, L] or [B]."""
    return (*np.shape(bags), 1)[1]


def _ragged(name: str, bags: Ragged) -> tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " B"]]:
    """The values and lengths of one feature's ragged bags."""
    values = _as_int32(f"feature {name}", bags.values)
    lengths = _as_int32(f"lengths of feature {name}", bags.lengths)
    if values.ndim != 1 or lengths.ndim != 1:
        raise UserError(
            f"feature {name}: expected Ragged(values, lengths) of shapes [N] and [B], got "
            f"{list(values.shape)} and {list(lengths.shape)}"
        )
    return values, lengths


def _ragged_weights(name: str, bags: Ragged, own: Any, width: int) -> np.ndarray | None:
    """The padded id weights of one feature's ragged bags."""
    if isinstance(own, Ragged) and not np.array_equal(own.lengths, bags.lengths):
        raise UserError(
            f"id_weights of {name}: expected the lengths of its ids, got others; "
            f"weights would go to ids of other bags"
        )
    values = _as_floats("id_weights", own.values if isinstance(own, Ragged) else own)
    return pad_bags(*_ragged(name, bags), width, values)[1]


def _as_floats(name: str, weights: Any) -> Float[np.ndarray, "..."]:
    """Weights of at least 32 bits."""
    array = _unmasked(name, weights)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:  # JAX has no longer ones
        raise UserError(f"{name}: expected floating numbers, got {array.dtype}; cast to float32")
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)


def _as_int32(name: str, ids: Any) -> Int32[np.ndarray, "..."]:
    array = _unmasked(name, ids)
    integers = array.dtype.kind in "iu"  # `np.integer` has differences of times as well
    if isinstance(ids, list | tuple) and not integers:  # none, or beyond 64 bits
        array = np.asarray(ids, object)
        integers = all(type(x) is int for x in array.flat)
    if not integers:
        raise UserError(f"{name}: expected integers, got {np.asarray(ids).dtype}")
    if array.dtype != np.int32 and array.size:
        low, high = int(array.min()), int(array.max())
        if low < -(2**31) or high > 2**31 - 1:
            raise UserError(f"{name}: expected 32-bit numbers, got {low} to {high}")
    return array.astype(np.int32, copy=False)


def _unmasked(name: str, array: Any) -> np.ndarray:
    """Converts to NumPy, which would leave a mask behind."""
    if isinstance(array, np.ma.MaskedArray):
        raise UserError(
            f"{name}: expected a plain array, got a masked one; fill it: ids.filled(-1) makes "
            f"masked ids absent, weights.filled(0) leaves masked weights out"
        )
    try:
        return np.asarray(array)
    except ValueError as error:  # lists of different lengths
        raise UserError(
            f"{name}: expected an array, or bags of different lengths as Ragged(values, lengths)"
        ) from error
    except jax.errors.TracerArrayConversionError as error:
        raise UserError(
            f"{name}: Ragged bags are padded on the host; call EmbeddingCollection.put before jit"
        ) from error


def pad_batch(features: Sequence[Feature], multiple: int, ids: Any, *arrays: Any) -> Placed:
    """See `EmbeddingCollection.pad_batch`.

    Args:
        features: features in the order of their columns.
        multiple: number that must divide the size of the padded batch.
        ids: ids of B samples.
        arrays: arrays of the same samples, [B, ...].
    """
    ids = cast_ids(features, ids)
    count = len(ids)
    for array in arrays:
        if len(array) != count:
            raise UserError(f"arrays: expected {count} samples as in ids, got {len(array)}")
    padding = -count % multiple

    def padded(array: Any, fill: int) -> np.ndarray:
        array = _unmasked("arrays", array)
        return np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), constant_values=fill)

    weights = padded(np.ones(count, np.float32), 0)
    return (padded(ids, -1), *(padded(array, 0) for array in arrays), weights)

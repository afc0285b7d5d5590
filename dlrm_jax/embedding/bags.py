"""Padded bags of ids: made of ragged ones, and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Int32, Integer, Shaped

from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import check_batch_size


def pad_bags(
    values: Integer[np.ndarray, " N"],
    lengths: Integer[np.ndarray, " B"],
    max_ids: int,
    id_weights: Float32[np.ndarray, " N"] | None = None,
) -> tuple[Int32[np.ndarray, "B L"], Float32[np.ndarray, "B L"] | None]:
    """Turns concatenated bags into one padded row per sample.

    A bag of more than ``max_ids`` ids is truncated: its *first* ``max_ids`` ids are
    kept. Order the ids beforehand if others matter more, the latest of a history for
    instance.

    Args:
        values: the ids of all bags, one bag after the other.
        lengths: the number of ids of each bag; they sum to N.
        max_ids: the width L of the result.
        id_weights: weight of each id, [N].

    Returns:
        ids padded with -1, and their weights padded with 0 (None without weights).

    Raises:
        UserError: max_ids is less than 1, lengths are negative or don't sum to N, an id is
            negative or too large for int32, or the weights don't match the ids.
    """
    if max_ids < 1:
        raise UserError(f"max_ids must be at least 1, got {max_ids}")
    if lengths.size and lengths.min() < 0:
        raise UserError(f"lengths must not be negative, got {lengths.min()}")
    if lengths.sum() != len(values):
        raise UserError(f"lengths sum to {lengths.sum()} but there are {len(values)} ids")
    if len(values) and not 0 <= values.min() <= values.max() < 2**31:
        raise UserError(f"ids must lie in 0..2^31-1, got {values.min()}..{values.max()}")
    if id_weights is not None and id_weights.shape != values.shape:
        raise UserError(f"{len(values)} ids need as many weights, got shape {id_weights.shape}")
    ends = np.cumsum(lengths)
    positions = np.arange(max_ids)
    present = positions < lengths[:, None]
    source = np.where(present, (ends - lengths)[:, None] + positions, 0)
    if not len(values):  # np.take needs something to point at
        values, id_weights = (
            np.zeros(1, np.int32),
            None if id_weights is None else np.zeros(1, "f4"),
        )
    ids = np.where(present, values[source], -1).astype(np.int32)
    return ids, None if id_weights is None else np.where(present, id_weights[source], 0).astype(
        "f4"
    )


def check_batch(
    mesh: Mesh,
    features: Sequence[Feature],
    ids: Shaped[Array, "..."],
    id_weights: Shaped[Array, "..."] | None,
) -> None:
    """See `EmbeddingCollection.lookup`."""
    columns = sum(feature.max_ids for feature in features)
    if ids.ndim != 2 or ids.shape[1] != columns:
        raise UserError(
            f"ids: expected [B, {columns}], the max_ids of {len(features)} feature(s) side by "
            f"side, got {list(ids.shape)}"
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"ids: expected integers, got {ids.dtype}")
    if id_weights is not None and id_weights.shape != ids.shape:
        raise UserError(
            f"id_weights: expected one for each id, {list(ids.shape)}, got {list(id_weights.shape)}"
        )
    check_batch_size(mesh, "ids", ids.shape[0])


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
                sample, position = np.argwhere(bad)[0]
                raise UserError(
                    f"feature {feature.name}, sample {sample}: id "
                    f"{columns[sample, position]} is out of range; table {lookup.table} has "
                    f"ids 0..{rows - 1}, and -1 stands for absent"
                )
    if ids.shape[1] != start:
        raise UserError(f"expected {start} id columns, got {ids.shape[1]}")

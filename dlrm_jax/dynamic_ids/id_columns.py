"""The ids of a batch as the maps of a collection see them: which tables share one, absent ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from dlrm_jax.embedding.integer_arrays import integers
from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError

ABSENT = -1
"""The number that stands for an absent id, also in features with dynamic ids: all 64 bits are 1.
Every other number is an id there, negative ones and unsigned ones from 2^63 on, too."""


class MapGroup(NamedTuple):
    """Tables that share a map, since a feature reads them both or they a feature.

    Attributes:
        tables: names of the tables; the first one names the map.
        features: names of the features.
        columns: columns of the features in the id array.
    """

    tables: tuple[str, ...]
    features: tuple[str, ...]
    columns: Int64[np.ndarray, " c"]


class IdColumns:
    """The columns of the id array of a collection.

    Args:
        features: features, whose bags lie side by side.
        groups: result of `map_groups`.
    """

    def __init__(self, features: Sequence[Feature], groups: Sequence[MapGroup]):
        self._features = features
        self._count = sum(feature.max_ids for feature in features)
        self.dynamic = np.sort(np.concatenate([group.columns for group in groups]))
        self._rows = np.setdiff1d(np.arange(self._count), self.dynamic)

    def array(self, ids: Any) -> Int64[np.ndarray, "B C"]:
        """The id array; unsigned numbers of 64 bits by their bits.

        Args:
            ids: ids, see `IdMaps.translate`.

        Raises:
            UserError: they have another shape or type.
        """
        if isinstance(ids, Mapping):
            names = [feature.name for feature in self._features]
            if ids.keys() != set(names):
                raise UserError(
                    f"ids: expected those of the features {', '.join(names)}, got "
                    f"{', '.join(map(str, ids)) or 'none'}"
                )
            parts = [_padded(feature, ids[feature.name]) for feature in self._features]
            if len({len(part) for part in parts}) > 1:
                counts = ", ".join(
                    f"{len(x)} of {name}" for x, name in zip(parts, names, strict=True)
                )
                raise UserError(f"ids: expected as many samples of each feature, got {counts}")
            return np.concatenate(parts, axis=1)
        array = _integers("ids", ids)
        if array.ndim != 2 or array.shape[1] != self._count:
            raise UserError(
                f"ids: expected [B, {self._count}], the bags side by side, got {list(array.shape)}"
            )
        return array

    def with_rows(self, array: Int64[np.ndarray, "B C"]) -> Int32[np.ndarray, "B C"]:
        """The columns that are rows already; the others are absent.

        Args:
            array: result of `array`.

        Raises:
            UserError: a row has more than 32 bits.
        """
        found = np.full(array.shape, ABSENT, np.int32)
        own = array[:, self._rows]
        if own.size and not -(2**31) <= own.min() <= own.max() < 2**31:
            raise UserError(
                f"ids: expected rows of 32 bits where tables have no dynamic ids, got {own.min()} "
                f"to {own.max()}"
            )
        found[:, self._rows] = own
        return found


def place(
    found: Int32[np.ndarray, "B C"],
    columns: Int64[np.ndarray, " c"],
    present: Bool[np.ndarray, "B c"],
    rows: Int32[np.ndarray, " N"],
) -> None:
    """Writes the rows of the ids that are present.

    Args:
        found: rows of the tables, which are written to.
        columns: columns of the ids.
        present: whether there is an id.
        rows: rows of the ids that are there.
    """
    own = np.full(present.shape, ABSENT, np.int32)
    own[present] = rows
    found[:, columns] = own


def map_groups(
    tables: Mapping[str, Table],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    names: Collection[str] | None = None,
) -> list[MapGroup]:
    """The tables with maps by the map that they share, in the order of the tables.

    Args:
        tables: all tables, by name.
        features: features in the order of their columns.
        lookups: lookups of the features in the tables.
        names: names of the tables with maps; None for those with dynamic ids.
    """
    mapped = [x.name for x in tables.values() if (x.ids if names is None else x.name in names)]
    pairs = [(x.feature, x.table) for x in lookups if x.table in mapped]
    ends = np.cumsum([feature.max_ids for feature in features])
    columns = {
        f.name: np.arange(end - f.max_ids, end) for f, end in zip(features, ends, strict=True)
    }
    found, left = [], mapped
    while left:
        own, read_by = {left[0]}, set()
        while True:  # until no feature reads another table, and no table has another feature
            read_by = {feature for feature, table in pairs if table in own}
            more = {table for feature, table in pairs if feature in read_by}
            if more == own:
                break
            own = more
        names = tuple(feature.name for feature in features if feature.name in read_by)
        of_group = np.concatenate([columns[name] for name in names])
        found.append(MapGroup(tuple(x for x in left if x in own), names, of_group))
        left = [name for name in left if name not in own]
    return found


def _padded(feature: Feature, ids: Any) -> Int64[np.ndarray, "B L"]:
    """A feature's bags, padded to its width."""
    array = _integers(f"feature {feature.name}", ids)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] > feature.max_ids:
        raise UserError(
            f"feature {feature.name}: expected [B] or [B, L] with at most {feature.max_ids} ids, "
            f"got {list(array.shape)}"
        )
    missing = feature.max_ids - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing)], constant_values=ABSENT)


def _integers(name: str, ids: Any) -> Int64[np.ndarray, "..."]:
    """Integers as signed ones of 64 bits, by their bits."""
    array = integers(name, ids, f", with {ABSENT} for absent ids")
    return array.view(np.int64) if array.dtype == np.uint64 else array.astype(np.int64, copy=False)

"""Attributes of items, and filters by them: language is en, and category is one of several."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int32

from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import listed
from dlrm_jax.retrieval.index.vectors import GAP

Clause = tuple[int, Int32[np.ndarray, " _"]]
"""Number of an attribute, and the ids one of which an item must have, ascending."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attribute:
    """An attribute.

    Attributes:
        name: name of the column.
        columns: first of its columns in the ids, and the one after the last: several for a bag.
        values: values by id, ``value`` and ``id``; each once.
    """

    name: str
    columns: tuple[int, int]
    values: pl.DataFrame

    @functools.cached_property
    def _ids(self) -> dict[Any, int]:
        return dict(zip(self.values["value"], self.values["id"], strict=True))

    def ids_of(self, values: Sequence[Any]) -> Int32[np.ndarray, " n"]:
        """The ids of values, ascending; a value that no item has gives none.

        Raises:
            UserError: a value has another type than the attribute.
        """
        kinds, expected = _kinds(self.values["value"].dtype)
        for value in values:
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise UserError(f"filters: {self.name}: expected {expected}, got {value!r}")
        found = {self._ids[value] for value in values if value in self._ids}
        return np.array(sorted(found), np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Attributes:
    """The attributes of items.

    Attributes:
        ids: ids of each item's values, all attributes side by side; negative is absent. Those of an
            index are in the order of its places, see `vectors.ItemVectors`.
        attributes: attributes.
    """

    ids: Int32[np.ndarray, "I W"]
    attributes: tuple[Attribute, ...]

    def at(self, places: Int32[np.ndarray, " P"]) -> Attributes:
        """The attributes in the order of places, absent in gaps.

        Args:
            places: number of the item of each place; `vectors.GAP` for none.
        """
        ids = np.where((places != GAP)[:, None], self.ids[places], -1).astype(np.int32)
        return Attributes(ids, self.attributes)

    def filter(self, wanted: Mapping[str, Any]) -> tuple[Clause, ...]:
        """A filter: the clauses that an item must fulfil, all of them.

        Args:
            wanted: by name of an attribute, a value or a list of values. An item fulfils it if its
                value, or one of those of its bag, is among them.

        Raises:
            UserError: there is no such attribute, no value, or one of another type.
        """
        if not isinstance(wanted, Mapping):
            raise UserError(f"filters: expected attributes by name, got {wanted!r}")
        names = [attribute.name for attribute in self.attributes]
        clauses = []
        for name, values in wanted.items():
            if name not in names:
                raise UserError(
                    f"filters: items have no attribute {name!r}; they have "
                    f"{listed(names) or 'none'}"
                )
            values = list(values) if isinstance(values, list | tuple | set) else [values]
            if not values:
                raise UserError(f"filters: {name}: expected at least one value, got none")
            number = names.index(name)
            clauses.append((number, self.attributes[number].ids_of(values)))
        return tuple(clauses)

    def passing(self, clauses: Sequence[Clause]) -> Bool[np.ndarray, " I"]:
        """Which items pass a filter."""
        found = np.ones(len(self.ids), bool)
        for number, ids in clauses:
            own = self.ids[:, slice(*self.attributes[number].columns)]
            found &= np.isin(own, ids).any(axis=1)
        return found


def _kinds(dtype: Any) -> tuple[tuple[type, ...], str]:
    """The types of values that a column of a type may be asked for, and how to call them."""
    if dtype == pl.String:
        return (str,), "text"
    if dtype == pl.Boolean:
        return (bool, np.bool_), "True or False"
    if dtype.is_integer():
        return (int, np.integer), "an integer"
    if dtype.is_float():
        return (int, float, np.integer, np.floating), "a number"
    if dtype == pl.Null:  # no item has a value
        return (object,), "a value"
    return (dtype.to_python(),), f"a value of type {dtype}"

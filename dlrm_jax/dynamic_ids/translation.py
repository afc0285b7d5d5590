"""What the translation of a batch's ids leaves on its way, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from dlrm_jax.dynamic_ids.occupants import Undo
from dlrm_jax.dynamic_ids.routing import Asked, UnitRows
from dlrm_jax.errors import UserError

Unit = tuple[str, int]
"""A part of a map: the map's name, and the number of the part."""

Undos = Mapping[Unit, Undo]
"""The record of one batch that each part of a map is taken back by, of the parts that are here."""


class TranslatedIds(NamedTuple):
    """A batch's ids as rows.

    Attributes:
        ids: rows of the tables, [B, C] int32; negative is absent.
        fresh: rows that begin afresh, by table; see `EmbeddingCollection.reset_rows`. They are
            those of the whole batch, in every process.
        undo: record that takes the maps back to before the batch.
    """

    ids: Int32[np.ndarray, "B C"]
    fresh: dict[str, Int32[np.ndarray, " F"]]
    undo: Undos


class AskedIds(NamedTuple):
    """A batch's ids at the processes that have their maps.

    Attributes:
        of_units: ids by unit.
        present: whether there is an id in each column of each map, by the map's name.
        orders: places of the ids of the parts of each map, see `PartedMap.split`.
        rows: result with the columns that are rows already, [B, C].
    """

    of_units: Asked
    present: list[Bool[np.ndarray, "B c"]]
    orders: list[Int64[np.ndarray, " N"] | None]
    rows: Int32[np.ndarray, "B C"]


class ChangedMaps(NamedTuple):
    """What a batch has changed in the parts that are here.

    Attributes:
        rows: rows of the ids of each part.
        undo: record that takes the parts back; empty if nothing has changed.
        now: time of the batch; 0 where nothing changes.
        error: reason why nothing has changed; None if something has.
    """

    rows: list[UnitRows]
    undo: dict[Unit, Undo]
    now: int = 0
    error: UserError | None = None


def of_parts(name: str, undone: Sequence[Undos]) -> dict[int, list[Undo]]:
    """The records of the parts of a map, by part.

    Args:
        name: name of the map.
        undone: records of batches.
    """
    found: dict[int, list[Undo]] = {}
    for undos in undone:
        for (of, part), undo in undos.items():
            if of == name:
                found.setdefault(part, []).append(undo)
    return found

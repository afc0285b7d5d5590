"""The rules by which ids get rows of a table and lose them."""

from __future__ import annotations

import dataclasses

import numpy as np

from dlrm_jax.errors import UserError, shown

EVICTIONS = ("lru", "lfu", "distance_lfu")
"""What `DynamicIds.evict` may be."""

_MOST_COUNT = 255  # a cell of the sketch is a byte
_MOST_PARTS = 4096  # each takes time in every batch
_BLOCK = 64  # bytes of a line of the cache: the cells of an id lie in one


@dataclasses.dataclass(frozen=True)
class DynamicIds:
    """The rules of a table with dynamic ids, of which each row belongs to at most one id.

    Rows 0 to ``defaults - 1`` belong to no id: ids without a row read them.

    Attributes:
        admit_count: number of times that an id must have been seen to get a row, 1 to 255. Ids
            without a row are counted by a count-min sketch, which may count too high, and which
            forgets: see `sketch_window`.
        admit_probability: probability that an id gets a row, drawn once for each id and clock
            value by a hash of both and of the seed; 1 for always. Frequent ids are drawn often.
        evict: ids that lose their rows first where rows are lacking: ``"lru"``, seen last the
            longest ago; ``"lfu"``, seen least often; ``"distance_lfu"``, the smallest count /
            (now - last seen + 1), as TorchRec's DistanceLFU_EvictionPolicy with its default
            exponent. Among equals it is the one seen last the longest ago, then the lowest row.
        evict_share: share of the rows that is freed at once if one is lacking, so that the search
            for them is rare.
        max_age: units of the clock after which an id that wasn't seen loses its row, at most an
            eighth of it later; None for never.
        defaults: number of rows that ids without a row read, each by a hash of the id.
        parts: number of parts that the ids are split into by a hash. Each part has rows of its own,
            and one of several processes, see `parts.RowParts`. Which rows ids get depends on it.
    """

    admit_count: int = 1
    admit_probability: float = 1.0
    evict: str = "lru"
    evict_share: float = 1 / 32
    max_age: int | None = None
    defaults: int = 1
    parts: int = 1

    def __post_init__(self):
        # Python's own types, which JSON has, too.
        limits = {
            "admit_count": _MOST_COUNT,
            "defaults": 2**30,
            "max_age": 2**62,
            "parts": _MOST_PARTS,
        }
        for name, most in limits.items():
            if (value := getattr(self, name)) is not None or name != "max_age":
                object.__setattr__(self, name, whole(name, value, 1, most))
        for name in ("admit_probability", "evict_share"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0 < value <= 1):
                raise UserError(f"{name}: expected a number above 0, up to 1, got {shown(value)}")
        if self.evict not in EVICTIONS:
            names = ", ".join(EVICTIONS)
            raise UserError(f"evict: expected one of {names}, got {shown(self.evict)}")

    def check_rows(self, rows: int) -> None:
        """Checks that a table has rows for defaults and at least one id of each part.

        Args:
            rows: rows of the table.

        Raises:
            UserError: it has fewer, or more than 2^30.
        """
        whole("rows of a table with dynamic ids", rows, self.defaults + self.parts, 2**30)

    def sketch_cells(self, rows: int) -> int:
        """The number of cells, one byte each, of the sketch that counts ids without a row.

        Args:
            rows: rows of the table. It is four cells a row, and none if the first sight admits.
        """
        return 0 if self.admit_count == 1 else -(-4 * rows // _BLOCK) * _BLOCK

    def sketch_window(self, rows: int) -> int:
        """The number of occurrences of ids without a row after which the sketch halves its counts.

        Args:
            rows: rows of the table.
        """
        return rows * max(1, self.admit_count // 2)

    def evicted_at_once(self, rows: int) -> int:
        """The number of ids that lose their rows at once, unless more are lacking.

        Args:
            rows: rows of the table.
        """
        return max(1, int((rows - self.defaults) * self.evict_share))

    @property
    def sweep_every(self) -> int | None:
        """Units of the clock between searches for ids older than `max_age`; None without."""
        return None if self.max_age is None else max(1, self.max_age // 8)


def whole(name: str, value: object, least: int, most: int) -> int:
    """An integer of Python's, from one of Python's or NumPy's.

    Args:
        name: name of the value, for messages.
        value: value.
        least: smallest allowed integer.
        most: largest allowed integer.

    Raises:
        UserError: it is none, or out of range.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        found = int(value)
        if least <= found <= most:
            return found
    raise UserError(f"{name}: expected an integer from {least} to {most}, got {shown(value)}")

"""The ids of values that came before, of one column; and the values of a request."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from dlrm_jax.data.arrays import ABSENT

MOST = 1 << 13
"""Most values of a column that are remembered, about 200 bytes each."""

_LONGEST = 100  # characters of a text that is remembered
_EXACT = 1 << 53  # larger integers may change the type of their column
_NONE = type(None)
_KINDS = [{str}, {int}, {_NONE}, {str, _NONE}, {int, _NONE}]


class Known:
    """Ids or features by value; the oldest are forgotten. Threads may share it.

    Values are texts, integers or None. Python counts True, 1 and 1.0 as equal, so it takes none of
    the other types; `Values.of` sees to that.
    """

    def __init__(self) -> None:
        self._ids: dict[Any, Any] = {}
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, value: Any) -> Any:
        """The id of a value; None if it isn't known."""
        return self._ids.get(value)

    def of(self, values: Iterable[Any]) -> list[int | None]:
        """The id of each value; None if it isn't known."""
        return list(map(self._ids.get, values))

    def of_known(self, column: Sequence[Any]) -> list[int] | None:
        """The ids of a column without bags; None if one isn't known."""
        if {*map(type, column)} not in _KINDS:
            return None
        ids = list(map(self._ids.get, column))
        return None if None in ids else ids  # pyright: ignore[reportReturnType]

    def add(self, ids: Mapping[Any, Any]) -> None:
        """Remembers ids."""
        short = [x for x in ids if not isinstance(x, str) or len(x) <= _LONGEST]
        with self._changing:
            self._ids.update((x, ids[x]) for x in short[-MOST:])
            # At once: to find the first entry takes as long as there are removed ones before it.
            oldest = [*itertools.islice(self._ids, max(0, len(self._ids) - MOST))]
            for value in oldest:
                del self._ids[value]


class Values:
    """The values of a column of a request, and their ids as far as they are known.

    Args:
        values: values of all rows, those of all bags one after the other.
        known: ids of the column.
        counts: number of values of each row's bag; None for a column without bags.
        length: bag length; 1 without bags.
    """

    def __init__(
        self, values: Sequence[Any], known: Known, counts: Sequence[int] | None, length: int
    ):
        self._values, self._known, self._counts, self._length = values, known, counts, length
        self._ids: Any = known.of(values)
        self.unknown: list[Any] = []
        """Those without a known id, each once."""
        if None in self._ids:
            pairs = zip(values, self._ids, strict=True)
            self.unknown = [*dict.fromkeys(x for x, number in pairs if number is None)]

    @classmethod
    def of(cls, column: Sequence[Any], known: Known, length: int | None) -> Values | None:
        """The values of a column; None if their ids can't be remembered.

        They can if they are texts or if they are integers, and if their bags are lists.

        Args:
            column: value of each row; None is a missing one.
            known: ids of the column.
            length: bag length, of which a longer bag keeps the first values; None for no bags.
        """
        flat = column
        if length is not None:
            if not {*map(type, column)} <= {list, _NONE}:
                return None
            flat = [*itertools.chain.from_iterable(bag for bag in column if bag)]
        kinds = {*map(type, flat)}
        if kinds and kinds not in _KINDS:
            return None
        if int in kinds and any(x is not None and not -_EXACT <= x <= _EXACT for x in flat):
            return None
        if length is None:
            return cls(flat, known, None, 1)
        kept = [bag[:length] if bag else [] for bag in column]
        flat = [*itertools.chain.from_iterable(kept)]
        return cls(flat, known, [*map(len, kept)], length)

    def unknown_rows(self) -> list[Any]:
        """The values without an id, as rows of their column."""
        return self.unknown if self._counts is None else [[x] for x in self.unknown]

    def learn(self, ids: Int32[np.ndarray, "N L"]) -> None:
        """Takes the ids of `unknown_rows`; there may be more rows."""
        new = dict(zip(self.unknown, ids[:, 0].tolist(), strict=False))
        self._known.add(new)
        pairs = zip(self._values, self._ids, strict=True)
        self._ids = [new[x] if number is None else number for x, number in pairs]

    def ids(self) -> list[int] | Int32[np.ndarray, "N L"]:
        """The ids of all rows, which must be known; of bags, an array."""
        if self._counts is None:
            return self._ids
        bags = np.full((len(self._counts), self._length), ABSENT, np.int32)
        bags[np.arange(self._length) < np.array(self._counts)[:, None]] = self._ids
        return bags

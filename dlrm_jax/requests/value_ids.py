"""The rows of values that a client sends, by a vocabulary in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int32

from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.data.preprocessing.loaded_vocabulary import LoadedVocabulary
from dlrm_jax.data.special_ids import MISSING, UNSEEN

_MOST = 1 << 20
"""Most entries that Python has a dictionary of, of about 150 bytes each."""


class ValueIds:
    """A stored vocabulary that finds the rows of a few hundred values in microseconds.

    Polars takes a millisecond for each column, in threads that wait for each other under load. So
    Python looks up texts and integers itself, unless there are more than a million.

    Args:
        path: file of the vocabulary.

    Raises:
        UserError: it can't be read, or has a value twice.
    """

    def __init__(self, path: Path):
        self._loaded = LoadedVocabulary(path)
        entries = self._loaded.all_entries(pl.Series())
        self._kind: Any = str if self.dtype == pl.String else int
        is_plain = self.dtype == pl.String or self.dtype.is_integer()
        self._ids: dict[Any, int] = {}
        if is_plain and len(entries) <= _MOST:
            pairs = zip(entries["value"].to_list(), entries["id"].to_list(), strict=True)
            self._ids = dict(pairs)

    @property
    def dtype(self) -> Any:
        """The type of its values."""
        return self._loaded.dtype

    def known(self, values: Any, may_miss: bool) -> Int32[np.ndarray, " n"] | None:
        """The rows of a list of values of the vocabulary's own type; None for anything else.

        Args:
            values: values; where they aren't such a list, `encode` finds the rows.
            may_miss: whether None may be among them.
        """
        kinds = {self._kind, type(None)} if may_miss else {self._kind}
        if not (self._ids and isinstance(values, list) and {*map(type, values)} <= kinds):
            return None
        get = self._ids.get
        found = [MISSING if x is None else get(x, UNSEEN) for x in values]
        return np.asarray(found, np.int32)

    def encode(self, values: pl.Series) -> Int32[np.ndarray, " n"]:
        """The rows of any values.

        Raises:
            UserError: they have another type.
        """
        return vocabulary.encode(values, self._loaded.entries(values), 1)[:, 0]

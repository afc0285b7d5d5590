"""A vocabulary in memory, for many small requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.data.preprocessing.value_types import cast_values

_FEW = 1000


class LoadedVocabulary:
    """A stored vocabulary, sorted by value: finding one value takes no pass over all of them.

    Args:
        path: file of the vocabulary.

    Raises:
        UserError: it can't be read, or has a value twice.
    """

    def __init__(self, path: Path):
        self._sorted = vocabulary.read_whole(path).select("value", "id").sort("value")

    @property
    def dtype(self) -> Any:
        """The type of its values."""
        return self._sorted["value"].dtype

    def all_entries(self, values: pl.Series) -> pl.DataFrame:
        """All entries, whatever the values, as bins need them."""
        del values
        return self._sorted

    def entries(self, values: pl.Series) -> pl.DataFrame:
        """The entries for these values, or more, as `vocabulary.encode` takes them.

        Raises:
            UserError: the values have another type.
        """
        known = self._sorted["value"]
        flat = values.explode() if isinstance(values.dtype, pl.List) else values
        # Each operation of polars takes a tenth of a millisecond: few of them for few values.
        wanted = cast_values(flat if len(flat) < _FEW else flat.unique(), known.dtype)
        if wanted.null_count():
            wanted = wanted.drop_nulls()
        if not len(known) or not len(wanted):
            return self._sorted.clear()
        places = known.search_sorted(wanted).to_numpy()
        return self._sorted[np.unique(np.minimum(places, len(known) - 1))]

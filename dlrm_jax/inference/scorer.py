"""What gives logits of examples with ids: a trained checkpoint on a mesh, or an artifact."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from dlrm_jax.data.arrays import ABSENT, Split
from dlrm_jax.data.check import check_ids
from dlrm_jax.errors import UserError

_AT_ONCE = 1 << 16  # examples


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a model was trained with, and so expects of examples.

    Attributes:
        dense_features: number of dense features.
        columns: names of the categorical features.
        table_rows: number of ids of each.
        bag_lengths: longest bag of each.
        labels: names of the labels; none for one without a name.
        has_raw_ids: whether ids are those of a stream's values, of 64 bits; any may come.
    """

    dense_features: int
    columns: tuple[str, ...]
    table_rows: tuple[int, ...]
    bag_lengths: tuple[int, ...]
    labels: tuple[str, ...]
    has_raw_ids: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the labels, one for each logit of an example."""
        return self.labels or ("label",)

    def check_ids(self, split: Split, name: str, columns: Sequence[str] = ()) -> None:
        """Checks that ids are those of the model; see `data.check.check_ids`.

        Raises:
            UserError: one isn't a row of its table; or ids are rows, and the model takes those of a
                stream's values, or the reverse.
        """
        wanted = np.dtype(np.int64 if self.has_raw_ids else np.int32)
        for found in (day.ids.dtype for day in split.days if day.ids.dtype != wanted):
            what = "ids of a stream's values" if self.has_raw_ids else "rows of tables as ids"
            raise UserError(f"{name}: expected {what}, {wanted}, got {found}; give raw rows")
        if self.has_raw_ids:
            self._check_width(split, name)
        elif not self._are_rows(split):  # of a few examples, that is a tenth of the time
            check_ids(split, self.table_rows, self.bag_lengths, name, columns=columns)

    def _check_width(self, split: Split, name: str) -> None:
        if split.ids_per_example != sum(self.bag_lengths):
            raise UserError(
                f"{name}: expected {sum(self.bag_lengths)} ids of each example, got "
                f"{split.ids_per_example}"
            )

    def _are_rows(self, split: Split) -> bool:
        """Whether all ids are seen at once to be rows of the tables, or absent."""
        if len(split.days) != 1 or not 0 < len(split) <= _AT_ONCE:
            return False
        (day,) = split.days
        ids = np.asarray(day.ids)
        if not 0 < ids.shape[1] == len(self._limits):
            return False
        return bool(ids.min() >= ABSENT and (ids < self._limits).all())

    @functools.cached_property
    def _limits(self) -> Int64[np.ndarray, " C"]:
        """The number of ids that each column may have."""
        return np.repeat(np.asarray(self.table_rows, np.int64), self.bag_lengths)

    def check_dense(self, split: Split) -> None:
        """Checks that examples have as many dense features.

        Raises:
            UserError: they have more or fewer.
        """
        if split.dense_features != self.dense_features:
            raise UserError(
                f"the model was trained with {self.dense_features} dense features, got "
                f"examples with {split.dense_features}"
            )


@runtime_checkable
class Scorer(Protocol):
    """A model that is ready to predict."""

    @property
    def inputs(self) -> Inputs:
        """What it expects of examples."""
        ...

    def batch_sizes(self, most: int) -> tuple[int, ...]:
        """The numbers of examples that a program is compiled for when it is needed, ascending.

        None if no program is used.

        Args:
            most: largest number of examples predicted at a time.
        """
        ...

    def logits(
        self, split: Split, batch_size: int, shared: Collection[str] = ()
    ) -> Iterator[Float32[np.ndarray, "B *_"]]:
        """Yields the logits of all examples in order, a batch at a time, [B] or [B, H].

        Args:
            split: examples with the model's inputs; ids aren't checked.
            batch_size: number of examples predicted at a time.
            shared: features whose ids are the same in all examples, which may be looked up once.
        """
        ...

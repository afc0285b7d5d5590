"""What gives logits of examples with ids: a trained checkpoint on a mesh, or an artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dlrm_jax.data.arrays import Split
from dlrm_jax.data.check import check_ids
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a model was trained with, and so expects of examples.

    Attributes:
        dense_features: number of dense features.
        columns: names of the categorical features.
        table_rows: number of ids of each.
        bag_lengths: longest bag of each.
        labels: names of the labels; none for one without a name.
    """

    dense_features: int
    columns: tuple[str, ...]
    table_rows: tuple[int, ...]
    bag_lengths: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the labels, one for each logit of an example."""
        return self.labels or ("label",)

    def check_ids(self, split: Split, name: str, columns: Sequence[str] = ()) -> None:
        """Checks that ids are rows of the model's tables; see `data.check.check_ids`."""
        check_ids(split, self.table_rows, self.bag_lengths, name, columns=columns)

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
            shared: columns whose ids are the same in all examples, which may be looked up once.
        """
        ...

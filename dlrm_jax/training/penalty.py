"""L2 regularization of tables and layers: λ/2 Σ w², added to the loss that is minimized."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from dlrm_jax.embedding.collection import EmbeddingCollection
from dlrm_jax.embedding.l2 import add_l2
from dlrm_jax.embedding.state import EmbeddingState, RowGradients
from dlrm_jax.models.numeric import VECTORS


@dataclasses.dataclass(frozen=True)
class Penalty:
    """The strengths λ of the penalties λ/2 Σ w², as FuxiCTR defines them.

    It is no part of the losses that are recorded.

    Attributes:
        tables: λ of the rows of all tables that are trained, and of the vectors that embed dense
            features. Each row counts once, however often a batch names it.
        whole_tables: whether all rows have the penalty in each step, instead of the rows that the
            batch touches.
        dense: λ of all other parameters of the dense model, biases among them.
    """

    tables: float = 0.0
    whole_tables: bool = False
    dense: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.tables or self.dense)

    @property
    def of_all_rows(self) -> bool:
        """Whether each step updates all rows of the tables that are trained."""
        return bool(self.tables) and self.whole_tables

    def of_rows(
        self, collection: EmbeddingCollection, state: EmbeddingState, gradients: RowGradients
    ) -> RowGradients:
        """The gradients of the touched rows, or of all, by the loss with its penalty."""
        if not self.tables:
            return gradients
        return add_l2(collection, state, gradients, self.tables, self.whole_tables)

    def of_params(self, params: Any, gradients: Any) -> Any:
        """The gradients of the dense parameters by the loss with its penalty."""

        def added(path: tuple[Any, ...], w: jax.Array, g: jax.Array) -> jax.Array:
            embeds = any(getattr(key, "key", None) == VECTORS for key in path)
            strength = self.tables if embeds else self.dense
            return g + (strength * w).astype(g.dtype) if strength else g

        return jax.tree.map_with_path(added, params, gradients)


NO_PENALTY = Penalty()

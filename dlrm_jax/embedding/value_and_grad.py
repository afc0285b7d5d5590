"""The gradients of a loss of pooled vectors by dense arguments and by the rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrm_jax.embedding.collection import EmbeddingCollection


def value_and_grad(
    collection: EmbeddingCollection,
    loss_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    sum_duplicates: bool,
    transform: Callable[..., Any],
) -> Callable[..., tuple[Any, Any, Any]]:
    """See `EmbeddingCollection.value_and_grad`.

    The lookup stays outside of autodiff, whose gradient of a table would be as large as the table.
    """

    def run(state: Any, ids: Any, *args: Any, id_weights: Any = None) -> tuple[Any, Any, Any]:
        pooled, residuals = collection.lookup(state, ids, id_weights)
        positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        # Positions in args: with the pooled vectors before them, -1 would be another's.
        positions = [p + len(args) if p < 0 else p for p in positions] if args else []
        # The pooled vectors are at position 0.
        differentiate = transform(
            loss_fn, argnums=(0, *(position + 1 for position in positions)), has_aux=has_aux
        )
        value, (cotangents, *grads) = differentiate(pooled, *args)
        rows = collection.coalesce(
            collection.send_cotangents(residuals, cotangents), sum_duplicates
        )
        return value, (grads[0] if isinstance(argnums, int) and args else tuple(grads)), rows

    return run

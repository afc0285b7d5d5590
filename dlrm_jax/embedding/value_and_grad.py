"""The gradients of a loss of pooled vectors by dense arguments and by the rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def value_and_grad(
    lookup: Callable[..., Any],
    row_gradients: Callable[..., Any],
    loss_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    transform: Callable[..., Any],
) -> Callable[..., tuple[Any, Any, Any]]:
    """See `EmbeddingCollection.value_and_grad`.

    ``row_gradients`` makes the third result of residuals and cotangents. The lookup stays outside
    of autodiff, whose gradient of a table would be as large as the table.
    """

    def run(state: Any, ids: Any, *args: Any, id_weights: Any = None) -> tuple[Any, Any, Any]:
        pooled, residuals = lookup(state, ids, id_weights)
        numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        # Numbers in args: with the pooled vectors before them, -1 would be another's.
        numbers = [n + len(args) if n < 0 else n for n in numbers] if args else []
        # The pooled vectors are argument 0.
        differentiate = transform(loss_fn, argnums=(0, *(n + 1 for n in numbers)), has_aux=has_aux)
        value, (cotangents, *grads) = differentiate(pooled, *args)
        rows = row_gradients(residuals, cotangents)
        return value, (grads[0] if isinstance(argnums, int) and args else tuple(grads)), rows

    return run

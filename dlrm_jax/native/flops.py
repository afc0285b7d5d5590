"""The floating-point operations of native calls, by the shapes of their arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Shapes = Sequence[tuple[int, ...]]


def native_flops(target: str, operands: Shapes, results: Shapes) -> int:
    """The operations of the products of a native call; 0 if it has none.

    Args:
        target: name of the called target.
        operands: shapes of the arrays that it reads.
        results: shapes of the arrays that it gives.
    """
    if target in ("dlrm_jax_interact", "dlrm_jax_interact_back"):
        # One of the two has the dense vectors, the other one also the products.
        products = abs(math.prod(results[0]) - math.prod(operands[0]))
        return (4 if target.endswith("back") else 2) * products * operands[-1][-1]
    if target == "dlrm_jax_mlp":
        samples, width = operands[0]
        widths = width, *(bias[0] for bias in operands[2:])
        return 2 * samples * sum(a * b for a, b in itertools.pairwise(widths))
    if target == "dlrm_jax_mlp_back":
        samples, layers = operands[0][0], len(results) // 2
        weights = [math.prod(kernel) for kernel in results[:layers]]
        of_input = weights[0] if len(results) % 2 else 0
        return 2 * samples * (sum(weights) + sum(weights[1:]) + of_input)
    return 0

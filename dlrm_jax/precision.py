"""The precision of products of float32 matrices, which differs by device unless it is said.

XLA rounds their factors to TF32 (11 bits) on GPUs and to bfloat16 (8 bits) on TPUs, unless a
program asks for more. CPUs don't round, and what is asked for changes nothing there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax

ProductPrecision = Literal["float32", "tf32"]

_OF_JAX = {"float32": "highest", "tf32": "high"}


def jit(
    function: Callable[..., Any], precision: ProductPrecision = "float32", **options: Any
) -> jax.stages.Wrapped:
    """`jax.jit`, with one precision for all products of the function and of its derivatives.

    Products that name a precision of their own keep it, as do those of shorter types.

    Args:
        function: function.
        precision: precision that factors of float32 are rounded to. For ``"tf32"``, TPUs add up
            three products of bfloat16, which is more.
        options: options of `jax.jit`.
    """

    @functools.wraps(function)
    def with_precision(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision(_OF_JAX[precision]):
            return function(*args, **kwargs)

    return jax.jit(with_precision, **options)

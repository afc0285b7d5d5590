"""How Pallas kernels for TPUs go through blocks of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

BLOCK = 128
"""Tokens of a block: the lanes of a TPU's vector."""


def go_through(add: Callable[[Any], None], far: Any, first: Any, behind: Any) -> None:
    """Calls a function with one block after the other, brought from the memory of the device.

    Args:
        add: function of the references of a block.
        far: references to arrays of tokens with specs of `in_memory`.
        first: number of the first block.
        behind: number of the block behind the last one.
    """
    specs = _specs(far, lambda number: first + number)
    pltpu.emit_pipeline(add, grid=(behind - first,), in_specs=[specs])(far)


def _specs(arrays: Any, place: Callable[..., Any]) -> Any:
    """Specs of the block at a place of arrays of tokens, [1, T] or [H, T, d]."""

    def spec(x: Any) -> pl.BlockSpec:
        if len(x.shape) == 2:
            return pl.BlockSpec((1, BLOCK), lambda *i: (0, place(*i)))
        return pl.BlockSpec((x.shape[0], BLOCK, x.shape[2]), lambda *i: (0, place(*i), 0))

    return jax.tree.map(spec, arrays)


def of_program(arrays: Any) -> Any:
    """Specs of arrays of tokens of which a program has the block of its number."""
    return _specs(arrays, lambda number, _: number)


def in_memory(arrays: Any) -> Any:
    """Specs of arrays that stay in the memory of the device, for `go_through`."""
    return jax.tree.map(lambda _: pl.BlockSpec(memory_space=pl.ANY), arrays)


def whole(arrays: Any) -> Any:
    """Specs of arrays that each program has whole."""
    return jax.tree.map(lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * len(x.shape)), arrays)


def sums_like(like: Any) -> jax.ShapeDtypeStruct:
    """The shape of sums in float32."""
    return jax.ShapeDtypeStruct(like.shape, jnp.float32)


def run_kernel(
    kernel: Any, of_blocks: Array, given: Any, specs: Any, outs: list[Any], interpret: bool
) -> Any:
    """Runs a kernel for each block of tokens.

    Args:
        kernel: function of the numbers', the given arrays' and the results' references.
        of_blocks: number for each block that kernels read before they begin, [N].
        given: arrays that it reads.
        specs: specs of these arrays.
        outs: shapes of the results: arrays of tokens, and tuples of what all programs add up.
        interpret: whether a CPU emulates the TPU.
    """
    out_specs = [of_program(x) if isinstance(x, jax.ShapeDtypeStruct) else whole(x) for x in outs]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=of_blocks.shape, in_specs=list(specs), out_specs=out_specs
    )
    how: Any = pltpu.InterpretParams() if interpret else False
    call = pl.pallas_call(kernel, out_shape=outs, grid_spec=grid, interpret=how)
    return call(of_blocks, *given)

"""Measures the limits of a machine, and counts the work of a step.

The limit of a step is the roofline's: the longer of the time of its matrix products at the speed of
a large one, and the time of its rows at the speed of random reads. No step is faster, and one that
overlaps the two perfectly reaches it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import EmbeddingCollection, pooling
from dlrm_jax.embedding.row_optimizer import slot_bytes
from dlrm_jax.native import layers, library, ops
from dlrm_jax.native.flops import native_flops
from dlrm_jax.native.thread_count import most_threads
from experiments.benchmarks.timing import fastest_seconds

SIDE = 2048
"""Width of the matrices: large enough for the full speed of two cores."""

_TABLE_BYTES = 512 * 2**20  # far larger than caches
_IDS = 2**19
_LOOP = 2000  # products of the loop: some milliseconds


@dataclasses.dataclass(frozen=True)
class Machine:
    """Measured limits of a machine.

    Attributes:
        flops: floating-point operations a second, in the fastest matrix product there is, of
            operands of the step's type: of large matrices, or a loop whose operands stay in the
            first cache.
        row_bytes: bytes a second, in reading rows at random.
    """

    flops: float
    row_bytes: float

    def limit(self, work: Work) -> float:
        """The least seconds that the work takes."""
        return max(work.flops / self.flops, work.row_bytes / self.row_bytes)


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a step.

    Attributes:
        flops: floating-point operations of its matrix products, native ones too.
        row_bytes: bytes of distinct rows of tables and optimizer state, read once for the lookup,
            and read and written once for the update.
    """

    flops: float
    row_bytes: float


def measure(
    dim: int, native: bool, dtype: str = "float32", product_seconds: float = math.inf
) -> Machine:
    """Measures the machine's limits, the best of several tries.

    Args:
        dim: width of the float32 rows.
        native: whether native kernels are used; they read rows faster, and may multiply faster.
        dtype: type in which the dense model computes, float32 or bfloat16.
        product_seconds: seconds of another library's product of matrices of `SIDE`.
    """
    rows = _TABLE_BYTES // (4 * dim)
    table = jnp.ones((rows, dim))
    ids = np.random.default_rng(0).integers(0, rows, (_IDS // 64, 1, 64), dtype=np.int32)
    pool = ops.pool if native else pooling.pool
    read = jax.jit(lambda table, ids: pool(table, ids, None))
    flops = product_flops(native, dtype, product_seconds)
    read_seconds = fastest_seconds(lambda: read(table, ids).block_until_ready())
    return Machine(flops, ids.size * 4 * dim / read_seconds)


def product_flops(native: bool, dtype: str, product_seconds: float = math.inf) -> float:
    """Floating-point operations a second of the fastest matrix product; see `Machine.flops`.

    Args:
        native: whether native kernels are used.
        dtype: type of the operands, float32 or bfloat16.
        product_seconds: seconds of another library's product of matrices of `SIDE`.
    """
    products = map(_product_seconds, _products(native, dtype))
    flops = 2 * SIDE**3 / min(product_seconds, *products)
    if native and _multiplies_natively(dtype):
        flops = max(flops, _loop_flops(dtype))
    return flops


def _products(native: bool, dtype: str) -> list[Callable[[], Any]]:
    """The products of two large matrices that the step may use."""
    left = jnp.ones((SIDE, SIDE), dtype)
    by_xla = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    products: list[Callable[[], Any]] = [lambda: by_xla(left, left)]
    if native and _multiplies_natively(dtype):
        shape = layers.Shape((SIDE, SIDE), (False,), dtype == "bfloat16")
        given = [jnp.ones((SIDE, SIDE))], [jnp.zeros(SIDE)]
        packed = layers.pack(shape, given[0])
        layer = jax.jit(functools.partial(layers.forward, shape))
        products.append(lambda: layer(left, packed, given[1]))
    return products


def _multiplies_natively(dtype: str) -> bool:
    return dtype == "float32" or layers.supports_bfloat16()


def _loop_flops(dtype: str) -> float:
    """Operations a second of a loop of products that reads the first cache alone."""
    multiply = library.functions().DlrmJaxMultiplyAgain
    multiply.restype, multiply.argtypes = ctypes.c_double, [ctypes.c_int64] * 3
    given = dtype == "bfloat16", _LOOP, most_threads(None)
    return multiply(*given) / fastest_seconds(lambda: multiply(*given))


def _product_seconds(product: Callable[[], Any]) -> float:
    return fastest_seconds(lambda: jax.block_until_ready(product()))


def matrix_flops(function: Callable[..., Any], *arguments: Any, times: int = 1) -> float:
    """Floating-point operations of matrix products and native calls in a function.

    They are counted on all devices, in the jaxpr, as XLA counts the body of a loop once. Unused
    results don't count. A product of [m, k] and [k, n] has 2 m n k. The body of a loop that the
    data end counts so many ``times``.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _flops(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0], times)


def _flops(jaxpr: Any, of_while: int) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracting, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracting)
            total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name == "ffi_call":
            given, found = ([x.aval.shape for x in each] for each in (eqn.invars, eqn.outvars))
            total += native_flops(eqn.params["target_name"], given, found)
        times = 1
        if eqn.primitive.name == "scan":
            times = eqn.params["length"]
        elif eqn.primitive.name == "while":
            times = of_while
        elif eqn.primitive.name == "shard_map":
            times = eqn.params["mesh"].size
        total += times * sum(_flops(each, of_while) for each in jaxprs_in_params(eqn.params))
    return total


def device_bytes(arrays: Any) -> int:
    """Bytes of a tree of arrays over all devices, each copy included."""
    shards = (shard for x in jax.tree.leaves(arrays) for shard in x.addressable_shards)
    return sum(shard.data.nbytes for shard in shards)


def row_bytes(collection: EmbeddingCollection, batches: Sequence[Batch], train: bool) -> float:
    """`Work.row_bytes` of a step, the mean over batches.

    The batches are of this process, also split into micro-batches: ``ids`` [B, C] or [A, B/A, C].
    """
    ids = (np.asarray(batch.ids) for batch in batches)
    return float(np.mean([_row_bytes(collection, x.reshape(-1, x.shape[-1]), train) for x in ids]))


def _row_bytes(collection: EmbeddingCollection, ids: np.ndarray, train: bool) -> int:
    ends = np.cumsum([feature.max_ids for feature in collection.features])
    names = [feature.name for feature in collection.features]
    bags = dict(zip(names, np.split(ids, ends[:-1], axis=1), strict=True))
    total = 0
    for name, table in collection.tables.items():
        seen = []
        for lookup in collection.lookups:
            if lookup.table == name:
                own = bags[lookup.feature]
                own = own[own >= 0]
                seen.append(own if lookup.id_map is None else lookup.id_map(own))
        slab = collection.layout.slab_of(name)
        nbytes = table.nbytes // table.rows
        if train and slab.optimizer:
            state = sum(slot_bytes(slab.optimizer, table.dim, slab.dtype).values())
            nbytes += 2 * (nbytes + state)
        total += nbytes * len(np.unique(np.concatenate(seen)))
    return total

"""The matrix products of a dense model, forward and backward, counted in its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from dlrm_jax.config import Config
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.precision import ProductPrecision
from dlrm_jax.training.model import make_model
from dlrm_jax.training.tables import Descriptions


class Product(NamedTuple):
    """A matrix product, and the element-wise work on its result: bias, activation, gradients.

    Attributes:
        flops: floating point operations.
        operands: bytes that it reads.
        result: bytes that it writes.
        itemsize: bytes of a number that it multiplies.
    """

    flops: float
    operands: float
    result: float
    itemsize: int

    def seconds(self, device: Device, precision: ProductPrecision = "float32") -> float:
        """The roofline of the product, and a second kernel that reads and writes its result.

        Args:
            device: device that computes it.
            precision: precision of factors of float32.
        """
        nbytes = self.operands + self.result
        work = max(self.flops / self.speed(device, precision), nbytes / device.memory_bandwidth)
        return work + 2 * self.result / device.memory_bandwidth + 2 * device.launch

    def speed(self, device: Device, precision: ProductPrecision) -> float:
        """The floating point operations a second of it."""
        if self.itemsize <= 2:
            return device.flops16
        return device.flops32 if precision == "float32" else device.flops

    def in_16_bits(self) -> Product:
        """The same product of numbers of 16 bits."""
        half = 2 / self.itemsize
        return Product(self.flops, half * self.operands, half * self.result, 2)


class DenseModel(NamedTuple):
    """The dense model's work on the samples of a device.

    Attributes:
        forward: products of the logits.
        backward: products of the gradients.
        shapes: shapes of the arrays of parameters.
    """

    forward: tuple[Product, ...]
    backward: tuple[Product, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(map(math.prod, self.shapes))

    def in_16_bits(self) -> DenseModel:
        """The same model, with products of numbers of 16 bits."""
        forward, backward = (
            tuple(product.in_16_bits() for product in each)
            for each in (self.forward, self.backward)
        )
        return DenseModel(forward, backward, self.shapes)


def dense_model(config: Config, described: Descriptions, samples: int) -> DenseModel:
    """Counts the products of a config's dense model. No array is made.

    Args:
        config: config of the model.
        described: its tables and lookups.
        samples: samples of a device.
    """
    dims = {table.name: table.dim for table in described.tables}
    length = {feature.name: feature.max_ids for feature in described.features}

    def vectors(lookup: Any) -> jax.ShapeDtypeStruct:
        ids = (length[lookup.feature],) if lookup.pooling == "none" else ()
        return jax.ShapeDtypeStruct((samples, *ids, dims[lookup.table]), jnp.float32)

    inputs = (
        jax.ShapeDtypeStruct((samples, config.dense_features), jnp.float32),
        {lookup.name: vectors(lookup) for lookup in described.lookups},
    )
    model = nnx.eval_shape(lambda: make_model(config, described.composers, nnx.Rngs(0)))
    model.eval()  # batch statistics need a mesh; their products are the same
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def logits(params: Any, rest: Any, dense: Any, pooled: Any) -> Any:
        return jnp.sum(nnx.merge(graph, params, rest)(dense, pooled).astype(jnp.float32))

    forward = _products_needed(logits, params, rest, *inputs)
    with_gradients = jax.value_and_grad(logits, argnums=(0, 3))
    both = _products_needed(with_gradients, params, rest, *inputs)
    shapes = tuple(x.shape for x in jax.tree.leaves(params))
    return DenseModel(forward, both[len(forward) :], shapes)


def _products_needed(function: Callable[..., Any], *args: Any) -> tuple[Product, ...]:
    """The products of a function, without those whose results XLA drops as unused.

    Such is the gradient of dense features: a backward rule computes it for any layer.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    needed, _ = dce_jaxpr(jaxpr, len(jaxpr.outvars) * [True])
    return tuple(_products(needed))


def _products(jaxpr: core.Jaxpr) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            both: Any = (*equation.invars, *equation.outvars)
            left, right, result = (x.aval for x in both)
            (contracted, _), _ = equation.params["dimension_numbers"]
            flops = 2 * math.prod(result.shape) * math.prod(left.shape[i] for i in contracted)
            sizes = [math.prod(x.shape) * x.dtype.itemsize for x in (left, right, result)]
            yield Product(flops, sizes[0] + sizes[1], sizes[2], left.dtype.itemsize)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in core.jaxprs_in_params(equation.params):
            yield from times * tuple(_products(inner))

"""The dense part of DLRM and DCN-v2 as a graph of ONNX, built node by node.

Exporters that trace JAX, such as jax2onnx, ask for older versions of Orbax than this program.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlrm_jax.conversion.architecture import Architecture
from dlrm_jax.conversion.own_model import OwnModel

_OPSET = 17
_IR = 8  # of the same year: later runtimes read it


class _Nodes:
    """Nodes and constants of a graph."""

    def __init__(self, onnx: Any, constants: dict[str, np.ndarray]):
        self._onnx, self._constants = onnx, constants
        self._nodes: list[Any] = []

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        node = self._onnx.helper.make_node(op, inputs, [output], output, **attributes)
        self._nodes.append(node)
        return output

    def constant(self, name: str, value: Any) -> str:
        """Adds a constant; returns its name."""
        self._constants[name] = np.asarray(value)
        return name

    def model(self, inputs: dict[str, int], outputs: list[str]) -> Any:
        """The model of all nodes, with inputs [N, width] by name and outputs [N]."""
        helper = self._onnx.helper

        def value(name: str, *shape: Any) -> Any:
            return helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape)

        used = {name for node in self._nodes for name in node.input}
        graph = helper.make_graph(
            self._nodes,
            "dlrm",
            [value(name, "N", width) for name, width in inputs.items()],
            [value(name, "N") for name in outputs],
            [
                self._onnx.numpy_helper.from_array(array, name)
                for name, array in self._constants.items()
                if name in used
            ],
        )
        opset = [helper.make_opsetid("", _OPSET)]
        made = helper.make_model(
            graph, opset_imports=opset, ir_version=_IR, producer_name="dlrm_jax"
        )
        self._onnx.checker.check_model(made)
        return made


def dense_graph(onnx: Any, model: OwnModel, shape: Architecture) -> Any:
    """The graph (dense [N, D], vectors [N, W]) -> logit [N], probability [N].

    Args:
        onnx: the package onnx.
        model: the model.
        shape: its widths, with one of its interactions.
    """
    nodes = _Nodes(onnx, dict(model.layers))
    x = _mlp(nodes, "bottom", "dense", shape.counts.bottom, last_relu=True)
    if shape.interaction == "dot":
        x = _dot(nodes, x, shape.tables + 1, shape.embedding_dim, shape.self_interaction)
    else:
        x = nodes.add("Concat", [x, "vectors"], "interaction", axis=1)
    x = _mlp(nodes, "top", _cross(nodes, x, shape.layers), shape.counts.top, last_relu=False)
    logit = nodes.add("Reshape", [x, nodes.constant("one_axis", [-1])], "logit")
    shift = nodes.constant("shift", np.float32(model.shift))
    nodes.add("Sigmoid", [nodes.add("Add", [logit, shift], "shifted")], "probability")
    width = shape.tables * shape.embedding_dim
    inputs = {"dense": shape.dense_features, "vectors": width}
    return nodes.model(inputs, ["logit", "probability"])


def _mlp(nodes: _Nodes, part: str, x: str, count: int, last_relu: bool) -> str:
    for i in range(count):
        name = f"{part}.layers.{i}"
        x = nodes.add("Gemm", [x, f"{name}.kernel", f"{name}.bias"], name)
        if last_relu or i + 1 < count:
            x = nodes.add("Relu", [x], f"{name}.relu")
    return x


def _dot(nodes: _Nodes, x: str, count: int, dim: int, alike: bool) -> str:
    """The dense vector, and the products of pairs of all vectors."""
    rows = nodes.add("Concat", [x, "vectors"], "all", axis=1)
    stacked = nodes.add("Reshape", [rows, nodes.constant("stack", [-1, count, dim])], "stacked")
    turned = nodes.add("Transpose", [stacked], "turned", perm=[0, 2, 1])
    products = nodes.add("MatMul", [stacked, turned], "products")
    flat = nodes.add("Reshape", [products, nodes.constant("flat", [-1, count * count])], "squares")
    i, j = np.tril_indices(count, 0 if alike else -1)
    pairs = nodes.add("Gather", [flat, nodes.constant("pairs", i * count + j)], "dots", axis=1)
    return nodes.add("Concat", [x, pairs], "interaction", axis=1)


def _cross(nodes: _Nodes, first: str, layers: int) -> str:
    x = first
    for i in range(layers):
        name = f"cross.{i}"
        low = nodes.add("MatMul", [x, f"{name}.factors.0"], f"{name}.low")
        high = nodes.add("MatMul", [low, f"{name}.factors.1"], f"{name}.high")
        biased = nodes.add("Add", [high, f"{name}.bias"], f"{name}.biased")
        crossed = nodes.add("Mul", [first, biased], f"{name}.crossed")
        x = nodes.add("Add", [crossed, x], name)
    return x

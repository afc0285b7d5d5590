"""This project's layer of HSTU, for `benchmarks.hstu_layer`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dlrm_jax.attention.block_pairs import BLOCK
from dlrm_jax.attention.jagged import Sequences, sequences_of
from dlrm_jax.models.hstu import HSTULayer
from experiments.benchmarks.hstu_problem import Case
from experiments.benchmarks.peers.workers.layer_protocol import serve


class OurLayer:
    """A layer, compiled with everything as an argument."""

    def __init__(self, case: Case, arrays: dict[str, np.ndarray]):
        lengths, times = arrays["lengths"], arrays["times"]
        self._tokens, self._all = len(times), -(-len(times) // BLOCK) * BLOCK
        sizes = case.length, case.heads, case.head_width, case.head_width
        layer = HSTULayer(case.width, *sizes, case.timed, 0.0, rngs=nnx.Rngs(0))
        for name, parameter in _parameters(layer).items():
            parameter[...] = jnp.asarray(arrays[name])
        self._graph, parameters, self._others = nnx.split(layer, nnx.Param, ...)

        def forward(parameters: Any, x: jax.Array, sequences: Sequences) -> jax.Array:
            return nnx.merge(self._graph, parameters, self._others)(x, sequences)

        def backward(parameters: Any, x: jax.Array, *others: Any) -> Any:
            sequences, cotangent = others
            _, back = jax.vjp(lambda *of: forward(of[0], of[1], sequences), parameters, x)
            return back(cotangent)

        following = np.append(times[1:], 0)
        lasts = np.cumsum(lengths) - 1
        following[lasts] = times[lasts]  # as the reference has it
        seconds = self._filled(times), self._filled(following)
        sequences = sequences_of(jnp.asarray(lengths), self._all, *seconds)
        given = [parameters, self._filled(arrays["x"]), sequences]
        if case.train:
            given.append(self._filled(arrays["cotangent"]))
        self._given = given
        function = backward if case.train else forward
        self._compiled = jax.jit(function).lower(*given).compile()

    def _filled(self, x: np.ndarray) -> jax.Array:
        """Tokens with filling behind them."""
        return jnp.asarray(np.pad(x, [(0, self._all - len(x)), *[(0, 0)] * (x.ndim - 1)]))

    def step(self) -> Any:
        """Computes all results."""
        return jax.block_until_ready(self._compiled(*self._given))

    def results(self) -> dict[str, np.ndarray]:
        """What a step computes, without filling."""
        found = self.step()
        if isinstance(found, jax.Array):
            return {"out": np.asarray(found)[: self._tokens]}
        of_parameters, of_x = found
        gradients = _parameters(nnx.merge(self._graph, of_parameters, self._others))
        named = {name: np.asarray(x[...]) for name, x in gradients.items()}
        return {**named, "x": np.asarray(of_x)[: self._tokens]}


def _parameters(layer: HSTULayer) -> dict[str, nnx.Param]:
    """The parameters by the names of `hstu_problem`."""
    assert layer.output.bias is not None
    found = {
        "uvqk": layer.uvqk,
        "output": layer.output.kernel,
        "output_bias": layer.output.bias,
        "by_distance": layer.by_distance,
    }
    return {**found, "by_time": layer.by_time} if layer.timed else found


if __name__ == "__main__":
    serve(OurLayer, ("jax", "jaxlib", "flax"))

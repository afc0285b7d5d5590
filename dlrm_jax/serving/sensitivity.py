"""How far the rounding of sums can move what an artifact gives.

Machines sum in different orders, so their results differ by the rounding of the sums, however small
the result is that is left of them. No size of a result tells how large its sums were. What tells is
how far the result moves if all numbers that are summed are off by a little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.dense_program import DenseProgram
from dlrm_jax.data.arrays import Examples

_DRAWS = 4

Outputs = Float[np.ndarray, "B *_"]
Result = Callable[[Outputs], Outputs]


class Tolerance(NamedTuple):
    """How far what an artifact gives may differ from what it gave elsewhere.

    Attributes:
        least: difference that every model may have.
        share: share of a number that is more than its rounding. A model whose results it moves
            further than ``least`` may differ as far.
    """

    least: float
    share: float

    def of(
        self, difference: float, artifact: Artifact, examples: Examples, result: Result
    ) -> float:
        """The largest difference that an artifact may have.

        Args:
            difference: difference that was found; if ``least`` allows it, no program runs.
            artifact: artifact.
            examples: examples of the difference.
            result: function that makes what is compared of the program's outputs.
        """
        if difference <= self.least:
            return self.least
        return max(self.least, largest_move(artifact, examples, self.share, result))


FLOAT32 = 2.0**-20
"""Share for sums of float32, each of which is rounded by up to 2⁻²⁴ of itself. Native layers and
the program differed by half of what shares of 2⁻²³ move, or less; this is eight times as many.
"""
BFLOAT16 = 2.0**-8
"""Share for models that compute in bfloat16, which has 8 bits. Its sums are float32, so that other
machines round few of its numbers otherwise.
"""


def largest_move(artifact: Artifact, examples: Examples, share: float, result: Result) -> float:
    """The largest change of a result when layers, dense features and vectors are off by a little.

    Args:
        artifact: artifact, whose program is run.
        examples: examples of its features.
        share: largest share of each number that it is off by; shares are drawn evenly from
            ``[-share, share]``, four times for all.
        result: function that makes what is compared of the program's outputs.
    """

    def results(programs: Mapping[int | None, DenseProgram]) -> Outputs:
        own = dataclasses.replace(artifact, native=None, programs=programs)
        return result(own.logits(examples.dense, np.asarray(examples.ids)))

    exact, random, found = results(artifact.programs), np.random.default_rng(0), 0.0
    for _ in range(_DRAWS):
        moved = {size: _Moved(x, random, share) for size, x in artifact.programs.items()}
        found = max(found, float(np.max(np.abs(results(moved) - exact))))
    return found


class _Moved(DenseProgram):
    """A program whose arguments are off by a little."""

    def __init__(self, program: DenseProgram, random: np.random.Generator, share: float):
        self._program, self._random, self._share = program, random, share

    def __call__(
        self, layers: Any, dense: Float32[Any, "B D"], vectors: Float32[Any, "B W"]
    ) -> Float32[Any, "B *_"]:
        return self._program(*jax.tree.map(self._move, (layers, dense, vectors)))

    def _move(self, array: Any) -> Any:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        shares = self._random.uniform(-self._share, self._share, array.shape).astype(np.float32)
        return (np.asarray(array, np.float32) * (1 + shares)).astype(array.dtype)

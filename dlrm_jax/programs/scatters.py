"""The scatters of a program, within fusions, too: whether values may meet in one place."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from dlrm_jax.programs.hlo import Computation, Program

_FLOATS = ("f", "bf")


class Scatter(NamedTuple):
    """What scatters have in common.

    Attributes:
        dtype: XLA's name of the type of the values, such as f32.
        combines: operation of two values of one place, such as add; set for the last one.
        unique: whether XLA knows that no place comes twice.
        is_sorted: whether XLA knows that places ascend.
        seldom: whether they are part of rounds that seldom run.
    """

    dtype: str
    combines: str
    unique: bool
    is_sorted: bool
    seldom: bool

    @property
    def may_repeat(self) -> bool:
        """Whether floats may meet in one place: GPUs then add them in another order each time."""
        return self.dtype.startswith(_FLOATS) and not self.unique


def scatters(program: Program, seldom: str) -> dict[Scatter, int]:
    """The number of scatters of each kind, wherever they are.

    Args:
        program: program.
        seldom: part of the names of operations that seldom run.
    """
    found = Counter[Scatter]()
    for instruction in program.instructions():
        if instruction.opcode != "scatter":
            continue
        found[
            Scatter(
                dtype=instruction.arrays[0].dtype,
                combines=_combines(program.computations[instruction.called("to_apply")[0]]),
                unique="unique_indices=true" in instruction.attributes,
                is_sorted="indices_are_sorted=true" in instruction.attributes,
                seldom=seldom in instruction.op_name,
            )
        ] += 1
    return dict(sorted(found.items()))


def _combines(computation: Computation) -> str:
    """What a function of the value before and the one that is scattered gives."""
    root = computation.root
    while root.opcode in ("bitcast", "copy", "convert"):
        root = computation.instructions[root.operands[0]]
    return "set" if root.opcode == "parameter" else root.opcode

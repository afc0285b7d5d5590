"""The cycles of a program's kernels, as XLA's compiler for TPUs counts them.

It counts those of elementwise kernels, reductions, copies and products. Gathers, scatters, sorts,
collectives and kernels of Pallas have no count, so that the sum isn't the time of a step. A single
kernel with a large part of the sum is worth a look.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from dlrm_jax.programs.hlo import Instruction, Program

_COUNT = re.compile(r'"estimated_cycles":"(\d+)"')


class Costly(NamedTuple):
    """A kernel.

    Attributes:
        cycles: its cycles.
        arrays: arrays that it gives.
        operation: operation of JAX that it was made for.
    """

    cycles: int
    arrays: str
    operation: str


class Cycles(NamedTuple):
    """The cycles of kernels that the compiler counts.

    Attributes:
        once: cycles of kernels that run once.
        in_loops: cycles of one turn of each loop that doesn't run seldom.
        most: kernels with the most, the first one first.
    """

    once: int
    in_loops: int
    most: tuple[Costly, ...]


def cycles(program: Program, seldom: str, number: int) -> Cycles | None:
    """The cycles of a program's kernels; None if the compiler doesn't count any.

    Args:
        program: program.
        seldom: part of the names of operations that seldom run; theirs aren't counted.
        number: number of kernels to name.
    """
    once, in_loops, found = 0, 0, list[Costly]()
    for computation in program.scheduled():
        for instruction in computation.instructions.values():
            count = _COUNT.search(instruction.attributes)
            if not count or seldom in instruction.op_name:
                continue
            if computation.name == program.entry:
                once += int(count[1])
            else:
                in_loops += int(count[1])
            found.append(_costly(int(count[1]), instruction))
    if not found:
        return None
    found.sort(key=lambda each: -each.cycles)
    return Cycles(once, in_loops, tuple(found[:number]))


def _costly(count: int, instruction: Instruction) -> Costly:
    return Costly(count, ", ".join(map(str, instruction.arrays)), instruction.op_name)

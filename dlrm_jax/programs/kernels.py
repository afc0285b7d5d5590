"""The kernels of a program: what a GPU launches, and a TPU runs, one after the other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from dlrm_jax.programs.hlo import Computation, Instruction, Program, called_in_turn

COLLECTIVES = (
    "all-to-all", "ragged-all-to-all", "all-gather", "all-reduce", "reduce-scatter",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
"""The operations that exchange arrays between devices; also with -start and -done behind."""

COLLECTIVE = "collective"
"""The kind of kernels that exchange arrays, see `kind_of`."""

# What gives another name, shape or number to arrays, or waits.
_NO_KERNELS = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "add-dependency", "domain", "get-dimension-size", "async-update",
}  # fmt: skip
_NO_CUSTOM_KERNELS = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "PreallocateBuffer"
}  # fmt: skip

# What a fusion is counted as: the first of these that it computes.
_FUSED = (
    ("product", {"dot", "convolution"}),
    ("sort", {"sort"}),
    ("scatter", {"scatter"}),
    ("gather", {"gather"}),
    ("reduction", {"reduce", "reduce-window"}),
)
_ELEMENTWISE = "elementwise"


class Kernels(NamedTuple):
    """The numbers of a program's kernels by what they compute.

    Attributes:
        once: kernels that run once, or as often as a loop whose turns are known.
        in_loops: kernels of one turn of each of the other loops.
        loops: number of these loops.
    """

    once: dict[str, int]
    in_loops: dict[str, int]
    loops: int


def kernels(program: Program) -> Kernels:
    """Counts the kernels of a program.

    A sort counts as one kernel, whatever its algorithm, and so does a call of a library. Of the
    branches of a condition, the one with the most kernels counts. TPUs compute single numbers
    beside their kernels; these don't count.
    """
    return kernels_of(program, program.computations[program.entry].instructions.values())


def kernels_of(program: Program, instructions: Iterable[Instruction]) -> Kernels:
    """As `kernels`, of some instructions of a program that run one by one."""
    once, in_loops, loops = _of(program, instructions)
    return Kernels(dict(sorted(once.items())), dict(sorted(in_loops.items())), loops)


def _of(
    program: Program, instructions: Iterable[Instruction]
) -> tuple[Counter[str], Counter[str], int]:
    once, in_loops, loops = Counter[str](), Counter[str](), 0
    for instruction in instructions:
        inner = [
            _of(program, program.computations[name].instructions.values())
            for name in called_in_turn(instruction)
        ]
        if instruction.opcode == "while":
            count = turns(instruction)
            loops += sum(x[2] for x in inner) + (count is None)
            for own, looped, _ in inner:
                in_loops += looped
                if count is None:
                    in_loops += own
                else:
                    once += Counter({kind: count * number for kind, number in own.items()})
        elif inner:  # of a condition's branches, the longest one
            own, looped, count = max(inner, key=lambda x: x[0].total() + x[1].total())
            once += own
            in_loops += looped
            loops += count
        elif kind := kind_of(program, instruction):
            once[kind] += 1
    return once, in_loops, loops


def kind_of(program: Program, instruction: Instruction) -> str | None:
    """What a kernel computes; None for an instruction that is none."""
    opcode = instruction.opcode
    if opcode in _NO_KERNELS or opcode.endswith("-done"):
        return None
    name = opcode.removesuffix("-start")
    if name in COLLECTIVES:
        return COLLECTIVE
    if name in ("copy", "slice"):
        return "copy"
    if opcode == "custom-call":
        target = custom_target(instruction)
        return None if target in _NO_CUSTOM_KERNELS else f"call of {target}"
    fused = program.fused(instruction)
    if fused is None:
        is_number = all(not array.dims for array in instruction.arrays)
        kinds = {opcode}
        if is_number and not any(opcode in computed for _, computed in _FUSED):
            return None
    else:
        kinds = _computed(program, fused)
    if name := next((name for name in COLLECTIVES if {name, f"{name}-start"} & kinds), None):
        return COLLECTIVE
    return next((kind for kind, computed in _FUSED if computed & kinds), _ELEMENTWISE)


def custom_target(instruction: Instruction) -> str:
    """The name of the function that a custom call calls."""
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def _computed(program: Program, computation: Computation) -> set[str]:
    """The opcodes within a fusion, and within the fusions of it."""
    found = set[str]()
    for instruction in computation.instructions.values():
        fused = program.fused(instruction)
        found |= _computed(program, fused) if fused else {instruction.opcode}
    return found


def turns(loop: Instruction) -> int | None:
    """The number of a loop's turns, if XLA knows it."""
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    return int(found[1]) if found else None

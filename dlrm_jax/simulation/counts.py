"""What a compiled step does, by part: its kernels, their bytes, and what its collectives wait for.

A simulated step takes these instead of formulas, where there is a program to count them in.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

from dlrm_jax.embedding.owner_exchange import LATER_ROUNDS
from dlrm_jax.programs.hlo import Computation, Instruction, Program, called_in_turn
from dlrm_jax.programs.kernels import COLLECTIVES, kind_of, turns

StepPart = Literal["lookup", "forward", "backward", "update", "dense"]
STEP_PARTS: tuple[StepPart, ...] = ("lookup", "forward", "backward", "update", "dense")
"""Lookups of tables, the model forward and backward, the update of tables, and of the model."""

PART_OF: Mapping[str, StepPart] = {
    "ids": "lookup", "lookup": "lookup", "vectors": "lookup",
    "forward": "forward", "backward": "backward",
    "cotangents": "update", "update": "update",
    "dense gradients": "dense", "dense sums": "dense", "dense update": "dense",
    "dense parameters": "dense",
}  # fmt: skip
"""The part of each operation of a simulated step, by its name."""

_TABLES = "state.embedding."


@dataclasses.dataclass(frozen=True)
class Counts:
    """The work of a compiled step on one device.

    Attributes:
        kernels: kernels of each part, without collectives.
        nbytes: bytes that these read and write, without the tables that they read rows of.
        received: bytes of the results of each part's collectives.
        collectives: collectives of each part.
        beside: number of these that have kernels between their start and their end.
    """

    kernels: Mapping[StepPart, float]
    nbytes: Mapping[StepPart, float]
    received: Mapping[StepPart, float]
    collectives: Mapping[StepPart, float]
    beside: Mapping[StepPart, float]


def count(program: Program) -> Counts:
    """Counts the work of a compiled step.

    Loops of so many turns as XLA knows count as often, others once; rounds of an exchange that
    seldom run don't count. Of the branches of a condition all count. An array that is an argument
    of the program, a table or its state, counts as much as the largest other array of its kernel:
    kernels read and write rows of it.
    """
    kernels, received, started, beside = (Counter[StepPart]() for _ in range(4))
    nbytes = dict.fromkeys(STEP_PARTS, 0.0)
    tables = _of_tables(program)
    for computation, times in _run(program, program.computations[program.entry], 1):
        unfinished: dict[str, bool] = {}  # whether a kernel came since the start, by name
        for instruction in computation.instructions.values():
            if LATER_ROUNDS in instruction.op_name:
                continue
            part = part_of(instruction.op_name)
            opcode, kind = instruction.opcode, kind_of(program, instruction)
            if opcode.endswith("-done"):
                is_beside = unfinished.pop(instruction.operands[0], False)
                if opcode.removesuffix("-done") in COLLECTIVES:
                    beside[part] += times * is_beside
                    received[part] += times * sum(x.nbytes for x in instruction.arrays)
            elif kind == "collective":
                started[part] += times
                if opcode.endswith("-start"):
                    unfinished[instruction.name] = False
                else:
                    received[part] += times * sum(x.nbytes for x in instruction.arrays)
            elif kind and not called_in_turn(instruction):
                kernels[part] += times
                nbytes[part] += times * _moved(computation, instruction, tables)
                unfinished = dict.fromkeys(unfinished, True)
    return Counts(kernels, nbytes, received, started, beside)


def part_of(op_name: str) -> StepPart:
    """The part of an operation, by JAX's name of it.

    What XLA names no operation for, such as an all-reduce of many arrays, is of the dense update.
    """
    scopes = op_name.split("/")[1:]
    if "update" in scopes[:2]:
        return "update"
    if "lookup" in scopes[:2]:
        return "lookup"
    if not scopes or "optimizer" in scopes[:2] or any(scope.startswith("psum") for scope in scopes):
        return "dense"
    return "backward" if any(scope.startswith("transpose(") for scope in scopes) else "forward"


def _run(
    program: Program, computation: Computation, times: int
) -> Iterator[tuple[Computation, int]]:
    """The computations whose instructions run one by one, and how often each runs."""
    yield computation, times
    for instruction in computation.instructions.values():
        if LATER_ROUNDS in instruction.op_name:
            continue
        often = times
        if instruction.opcode == "while":
            often *= turns(instruction) or 1
        for name in called_in_turn(instruction):
            yield from _run(program, program.computations[name], often)


def _of_tables(program: Program) -> set[tuple[int, ...]]:
    """The shapes of tables and their state, which loops have under other names."""
    entry = program.computations[program.entry].instructions.values()
    return {
        array.dims
        for instruction in entry
        if instruction.opcode == "parameter" and instruction.op_name.startswith(_TABLES)
        for array in instruction.arrays
    }


def _moved(
    computation: Computation, instruction: Instruction, tables: set[tuple[int, ...]]
) -> float:
    """The bytes that a kernel reads and writes."""
    arrays = list(instruction.arrays)
    for name in instruction.operands:
        arrays += computation.instructions[name].arrays
    whole = [x.padded_nbytes for x in arrays if x.dims not in tables]
    most = max(whole, default=math.inf)
    return sum(whole) + sum(min(x.padded_nbytes, most) for x in arrays if x.dims in tables)

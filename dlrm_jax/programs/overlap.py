"""What a device computes while its collectives are under way, in the order of the program.

A compiler splits a collective into an instruction that begins it and one that waits for its end.
What lies between them needs neither its result nor the wait. Others let the device wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dlrm_jax.programs.hlo import Computation, Instruction, Program
from dlrm_jax.programs.kernels import COLLECTIVE, COLLECTIVES, kernels_of

_START, _DONE = "-start", "-done"


class Overlap(NamedTuple):
    """A collective, and what is computed meanwhile.

    Attributes:
        kind: name of the exchange, such as all-reduce.
        nbytes: bytes of its result on one device.
        operation: operation of JAX that it was made for; empty if XLA has combined several.
        asynchronous: whether it begins and ends in two instructions.
        kernels: number of kernels between these two, without those of other collectives; of a loop
            whose turns aren't known, those of one turn.
    """

    kind: str
    nbytes: int
    operation: str
    asynchronous: bool
    kernels: int


def overlaps(program: Program, seldom: str) -> list[Overlap]:
    """The collectives that run one by one or beside kernels, in the order of their ends.

    Those within a fusion aren't among them: the compiler computes the rest of the fusion meanwhile.

    Args:
        program: program, in the order in which its instructions run.
        seldom: part of the names of operations that seldom run; theirs aren't among them.
    """
    found = [
        overlap
        for computation in program.scheduled()
        if not _is_asynchronous(program, computation)
        for overlap in _of(program, computation)
    ]
    return [overlap for overlap in found if seldom not in overlap.operation]


def _of(program: Program, computation: Computation) -> Iterator[Overlap]:
    instructions = [*computation.instructions.values()]
    begun: dict[str, int] = {}  # by the name of what began it, or goes on with it
    for place, instruction in enumerate(instructions):
        opcode = instruction.opcode
        nbytes = sum(array.nbytes for array in instruction.arrays)
        if opcode in COLLECTIVES:
            yield Overlap(opcode, nbytes, instruction.op_name, False, 0)
        elif kind := _begins(program, instruction):
            begun[instruction.name] = place
        elif opcode in ("async-update", "async-done") or opcode.endswith(_DONE):
            start = next((begun[x] for x in instruction.operands if x in begun), None)
            if start is None:  # a copy, say
                continue
            if opcode == "async-update":
                begun[instruction.name] = start
                continue
            kind = _begins(program, instructions[start])
            count = _count(program, instructions[start + 1 : place])
            operation = instructions[start].op_name or instruction.op_name
            yield Overlap(kind, nbytes, operation, True, count)


def _begins(program: Program, instruction: Instruction) -> str:
    """The kind of the collective that an instruction begins; empty if it begins none."""
    name = instruction.opcode.removesuffix(_START)
    if name == instruction.opcode:
        return ""
    if name != "async":
        return name if name in COLLECTIVES else ""
    inner = [program.computations[x] for x in instruction.called("calls")]
    opcodes = {x.opcode for computation in inner for x in computation.instructions.values()}
    return next((kind for kind in COLLECTIVES if kind in opcodes), "")


def _is_asynchronous(program: Program, computation: Computation) -> bool:
    """Whether a computation is what an instruction begins, and another one waits for."""
    return any(
        computation.name in x.called("calls")
        for x in program.instructions()
        if x.opcode == "async-start"
    )


def _count(program: Program, instructions: Sequence[Instruction]) -> int:
    counted = kernels_of(program, instructions)
    numbers = [*counted.once.items(), *counted.in_loops.items()]
    return sum(number for kind, number in numbers if kind != COLLECTIVE)

"""The arrays of a program that need memory: its state, and the temporaries as large as it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from dlrm_jax.programs.hlo import HBM, Array, Computation, Instruction, Program, called_in_turn

# What gives arrays that exist already, or the arguments of the program.
_VIEWS = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "domain",
    "add-dependency", "after-all",
}  # fmt: skip
_IN_PLACE = {"scatter", "dynamic-update-slice"}


class Argument(NamedTuple):
    """An argument of a program.

    Attributes:
        name: its name in JAX, such as state.embedding.tables['C1'].
        array: the array, as one device has it.
        updated: whether an output takes its place in memory.
    """

    name: str
    array: Array
    updated: bool


class Temporary(NamedTuple):
    """An array that a program makes.

    Attributes:
        op_name: the operation of JAX that it was made for.
        array: the array.
        kind: instruction that makes it, such as fusion or copy.
    """

    op_name: str
    array: Array
    kind: str

    @property
    def nbytes(self) -> int:
        """The bytes of memory that it needs."""
        return self.array.padded_nbytes


def arguments(program: Program) -> list[Argument]:
    """The arguments of a program, in the order of its text."""
    aliased = re.search(r"input_output_alias=\{(.*?)\}(?:, \w+=|$)", program.header)
    updated = {int(n) for n in re.findall(r": \((\d+),", aliased[1])} if aliased else set()
    found = []
    for instruction in program.computations[program.entry].instructions.values():
        if instruction.opcode == "parameter":
            number = int(instruction.attributes.partition(")")[0])
            found.append(Argument(instruction.op_name, instruction.arrays[0], number in updated))
    return found


def temporaries(program: Program) -> list[Temporary]:
    """The arrays in a device's memory that a program makes, the largest ones first.

    Not all of them exist at the same time. Those that are updated in place, and those that are
    outputs, aren't among them.
    """
    found = [
        Temporary(instruction.op_name, array, instruction.opcode)
        for computation in program.scheduled()
        for instruction, array in _made(program, computation)
    ]
    return sorted(found, key=lambda x: x.nbytes, reverse=True)


def _made(program: Program, computation: Computation) -> Iterator[tuple[Instruction, Array]]:
    outputs = _behind(computation, computation.root) if computation.name == program.entry else {}
    for instruction in computation.instructions.values():
        opcode = instruction.opcode
        # What an operation that has begun gives, is that of its end.
        if opcode in _VIEWS or opcode.endswith("-start") or called_in_turn(instruction):
            continue
        in_place = _in_place(program, instruction)
        for place, array in enumerate(instruction.arrays):
            is_output = place in outputs.get(instruction.name, ())
            if array.space == HBM and place not in in_place and not is_output:
                yield instruction, array


def _in_place(program: Program, instruction: Instruction) -> set[int]:
    """The places of an instruction's arrays that take the memory of what it reads."""
    if instruction.opcode in _IN_PLACE:
        return set(range(len(instruction.arrays)))
    if instruction.opcode == "custom-call":
        aliased = re.search(r"output_to_operand_aliasing=\{(.*?)\)\}", instruction.attributes)
        places = re.findall(r"\{(\d*)\}: ?\(", aliased[1] + ")") if aliased else []
        return {int(place or 0) for place in places}
    fused = program.fused(instruction)
    if fused is None:
        return set()
    roots = [fused.root]
    if fused.root.opcode == "tuple":
        roots = [fused.instructions[name] for name in fused.root.operands]
    return {place for place, root in enumerate(roots) if _updates(program, fused, root)}


def _updates(program: Program, fused: Computation, root: Instruction) -> bool:
    """Whether an instruction of a fusion updates an array in place."""
    while root.opcode in ("bitcast", "reshape", "copy") and len(root.operands) == 1:
        root = fused.instructions[root.operands[0]]
    inner = program.fused(root)
    return root.opcode in _IN_PLACE or (inner is not None and _updates(program, inner, inner.root))


def _behind(computation: Computation, root: Instruction) -> dict[str, set[int]]:
    """The instructions that make the arrays of a root, and which of theirs these are."""
    found: dict[str, set[int]] = {}
    stack = [(name, 0) for name in root.operands] if root.opcode == "tuple" else [(root.name, 0)]
    while stack:
        name, place = stack.pop()
        instruction = computation.instructions[name]
        if instruction.opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", instruction.attributes)
            assert index
            stack.append((instruction.operands[0], int(index[1])))
        elif instruction.opcode == "bitcast":
            stack.append((instruction.operands[0], place))
        else:
            found.setdefault(name, set()).add(place)
    return found

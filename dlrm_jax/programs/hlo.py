"""The text of a compiled program, XLA's HLO, as computations and instructions."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

HBM = 0
"""The space of a device's memory; others are the caches of a TPU that programs place arrays in."""

_HEADER = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPCODE = re.compile(r" ?([a-z][a-z0-9-]*)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[^\s,]+)")


class Array(NamedTuple):
    """An array that an instruction gives.

    Attributes:
        dtype: XLA's name of its type, such as f32.
        dims: sizes of its axes.
        layout: XLA's layout: the order of its axes, tiles and the space of memory.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return math.ceil(self.size * bits(self.dtype) / 8)

    @property
    def padded_nbytes(self) -> int:
        """The bytes of its elements in whole tiles, as TPUs store them."""
        tile = re.search(r":T\(([\d,]*)\)", self.layout)
        if not tile or not self.dims:
            return self.nbytes
        order = [int(axis) for axis in self.layout.split(":")[0].split(",")]
        sizes = [self.dims[axis] for axis in order]  # the innermost one first
        for place, size in enumerate(reversed(tile[1].split(","))):
            if place < len(sizes):
                sizes[place] = -(-sizes[place] // int(size)) * int(size)
        return math.ceil(math.prod(sizes) * bits(self.dtype) / 8)

    @property
    def space(self) -> int:
        """The number of the memory that it lies in."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else HBM

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
    """An instruction of a computation.

    Attributes:
        name: name of it.
        arrays: arrays that it gives, several if it gives a tuple.
        opcode: name of what it does, such as fusion or scatter.
        operands: names of the instructions whose arrays it reads.
        attributes: text of its operands and attributes.
        is_root: whether its arrays are those of the computation.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """The operation of JAX that it was made for, such as jit(step)/lookup/gather."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1].replace("\\'", "'").replace('\\"', '"') if found else ""

    def called(self, *kinds: str) -> list[str]:
        """The names of the computations that it calls, as some kinds of attributes."""
        found = [
            names.strip("{}").replace("%", "").split(", ")
            for kind, names in _CALLED.findall(self.attributes)
            if kind in kinds
        ]
        return [name for names in found for name in names]


class Computation(NamedTuple):
    """A computation: the program's own, the body of a loop, or what a fusion computes.

    Attributes:
        name: its name.
        instructions: instructions by name, in their order.
    """

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose arrays are those of the computation."""
        return next(x for x in self.instructions.values() if x.is_root)


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        header: first line, with what outputs share the memory of arguments.
        computations: computations by name.
        entry: name of the one that runs.
    """

    header: str
    computations: dict[str, Computation]
    entry: str

    def instructions(self) -> Iterator[Instruction]:
        """All instructions, those within fusions and of functions of two numbers, too."""
        for computation in self.computations.values():
            yield from computation.instructions.values()

    def fused(self, instruction: Instruction) -> Computation | None:
        """What a fusion computes; None for other instructions."""
        if instruction.opcode != "fusion":
            return None
        return self.computations[instruction.called("calls")[0]]

    def scheduled(self) -> list[Computation]:
        """The computations whose instructions run one by one: all but what is within them."""
        found, names = {}, [self.entry]
        while names:
            name = names.pop()
            if name in found:
                continue
            found[name] = self.computations[name]
            for instruction in found[name].instructions.values():
                names += called_in_turn(instruction)
        return list(found.values())


def called_in_turn(instruction: Instruction) -> list[str]:
    """The computations whose instructions an instruction runs one by one, as a loop does."""
    match instruction.opcode:
        case "while":
            return instruction.called("body", "condition")
        case "conditional":
            return instruction.called("branch_computations")
        case "call" | "async-start":
            return instruction.called("to_apply", "calls")
    return []


def program_of(compiled: jax.stages.Compiled) -> Program:
    """The text of a compiled program, read."""
    text = compiled.as_text()
    assert text is not None
    return read(text)


@functools.lru_cache(maxsize=1)
def read(text: str) -> Program:
    """Reads the text of a program.

    Raises:
        ValueError: it isn't HLO.
    """
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    lines = text.splitlines()
    for line in lines:
        if not line.startswith(" "):
            header = _HEADER.match(line)
            if header:
                current = Computation(header[2], {})
                computations[header[2]] = current
                entry = header[2] if header[1] else entry
        elif current and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(bool(match[1]), match[2], match[3])
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("expected the text of a program, with an ENTRY")
    return Program(lines[0], computations, entry)


def _instruction(is_root: bool, name: str, rest: str) -> Instruction:
    rest = _COMMENT.sub("", rest)
    end = _closed(rest, 0) if rest.startswith("(") else rest.index(" ")
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(rest[:end])
    )
    found = _OPCODE.match(rest, end)
    assert found, rest
    close = _closed(rest, found.end() - 1)
    operands = re.findall(r"%([^\s,)]+)", rest[found.end() : close])
    return Instruction(name, arrays, found[1], tuple(operands), rest[found.end() :], is_root)


def _closed(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at ``start``."""
    depth = 0
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return start + place.end()
    raise ValueError(f"expected a closing parenthesis in {text[start : start + 80]!r}")


def bits(dtype: str) -> int:
    """The bits of an element of a type: 8 of pred, 16 of bf16, 8 of f8e4m3fn."""
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8 if dtype == "pred" else 0

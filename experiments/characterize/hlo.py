"""A compiled program's instructions, as its text shows them, and the class of each.

The class of an instruction is the outermost `jax.named_scope` that it was traced in, on the way
there and back; that of a collective is its kind. XLA keeps the scopes in ``op_name``, where they
stand among the names of transformations and of loops.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

from experiments.characterize.groups import Groups, read_groups

OTHER = "other"
"""The class of what was traced in no scope."""

COLLECTIVES = (
    "all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip

# What runs instructions of its own, in whose time it does nothing.
CONTAINERS = ("while", "call")
# What nothing runs for: names for parts of arrays that are there.
_SILENT = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_NAME = re.compile(r"%([\w.-]+)")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(calls|to_apply|body|condition)=%?([\w.-]+)")
_INDEX = re.compile(r"\b(index)=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TRANSFORMED = re.compile(r"(?:jvp|transpose|vmap|remat|checkpoint)\((.*)\)")
_STRUCTURE = re.compile(
    r"while|body|cond|branch_\d+_fun|scan|closed_call|eval_jaxpr|shard_map|checkpoint"
    r"|rematted_computation|custom_[jv][vj]p_call"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array on one device."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> float:
        """Bytes of an element."""
        return 1 if self.dtype == "pred" else int(re.sub(r"\D", "", self.dtype)) / 8

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return int(self.size * self.itemsize)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the text.

    Attributes:
        name: of the instruction, different from all others in the program.
        opcode: what it does.
        results: one array, or those of a tuple.
        operands: names of instructions of the same computation.
        attributes: what follows the operands.
        root: whether its result is the computation's.
        index: of a parameter, or of the element of a tuple that it takes; 0 for anything else.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool
    index: int

    @property
    def nbytes(self) -> int:
        """Of all results."""
        return sum(array.nbytes for array in self.results)

    @property
    def collective(self) -> str | None:
        """Its kind, if it is one, without the ``-start`` or ``-done`` of an asynchronous one."""
        kind = self.opcode.removesuffix("-start").removesuffix("-done")
        return kind if kind in COLLECTIVES else None

    @property
    def silent(self) -> bool:
        """Whether nothing is run for it."""
        return self.opcode in _SILENT or self.opcode.endswith("-done")

    @property
    def trips(self) -> int | None:
        """How often a loop's body runs; None if the data decide."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else None

    @property
    def predecessors(self) -> list[str]:
        """What must have run before, though it takes nothing from it."""
        found = re.search(r"control-predecessors=\{([^}]*)\}", self.attributes)
        return _NAME.findall(found[1]) if found else []

    @property
    def op_name(self) -> str:
        """Where it was traced; empty if XLA has made it up."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    def called(self, kind: str) -> str | None:
        """The computation that it has as its ``calls``, ``to_apply``, ``body`` or ``condition``."""
        return dict(_CALLED.findall(self.attributes)).get(kind)


def scope(op_name: str) -> str | None:
    """The outermost scope in a name such as ``jit(step)/transpose(jvp(top_mlp))/dot_general``."""
    for part in op_name.split("/")[:-1]:  # the last is the operation
        while found := _TRANSFORMED.fullmatch(part):
            part = found[1]
        if re.fullmatch(r"\w+", part) and not _STRUCTURE.fullmatch(part):
            return part
    return None


class Program:
    """The instructions of a compiled program.

    Args:
        text: of `jax.stages.Compiled.as_text`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.instructions: dict[str, Instruction] = {}
        self.entry = ""
        found = re.search(r"num_partitions=(\d+)", text[: text.index("\n")])
        self.devices = int(found[1]) if found else 1
        current: list[Instruction] = []
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                current = self.computations[found[2]] = []
                self.entry = found[2] if found[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                instruction = _instruction(*found.groups())
                current.append(instruction)
                self.instructions[instruction.name] = instruction

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """Those whose results it takes."""
        return [self.instructions[name] for name in instruction.operands]

    def inside(self, container: Instruction) -> tuple[list[str], int]:
        """The computations that a loop or a call runs, and how often.

        Once if the data decide on it; only then is there a condition to be run.
        """
        kinds = ["to_apply", "body"]
        if container.opcode == "while" and container.trips is None:
            kinds = ["condition", "body"]
        found = [container.called(kind) for kind in kinds]
        return [computation for computation in found if computation], container.trips or 1

    @functools.cached_property
    def executions(self) -> dict[str, int]:
        """Of what the program runs one by one, how often it does; what is fused isn't among it."""
        found: dict[str, int] = {}

        def visit(computation: str, times: int) -> None:
            for instruction in self.computations[computation]:
                if instruction.opcode in CONTAINERS:
                    computations, trips = self.inside(instruction)
                    for each in computations:
                        visit(each, times * trips)
                elif not instruction.silent:
                    found[instruction.name] = times

        visit(self.entry, 1)
        return found

    @functools.cached_property
    def groups(self) -> dict[str, Groups]:
        """Of each collective, which devices take part in it together."""
        return {
            each.name: read_groups(each.attributes, self.devices)
            for each in self.instructions.values()
            if each.collective and not each.silent
        }

    @functools.cached_property
    def classes(self) -> dict[str, str]:
        """The class of each instruction."""
        return {name: self._class_of(name) for name in self.instructions}

    @functools.cached_property
    def _read(self) -> dict[str, Sequence[str]]:
        """Of each instruction, those whose results it takes."""
        return {name: each.operands for name, each in self.instructions.items()}

    @functools.cached_property
    def _reading(self) -> dict[str, Sequence[str]]:
        """Of each instruction, those that take its result."""
        found: dict[str, list[str]] = {name: [] for name in self.instructions}
        for name, operands in self._read.items():
            for operand in operands:
                found[operand].append(name)
        return {**found}

    def _class_of(self, name: str) -> str:
        """What XLA has made up, to copy something or to sum in two steps, has that of its input.

        Or, if that is an argument, that of what reads it.
        """
        instruction = self.instructions[name]
        if instruction.collective:
            return instruction.collective
        if instruction.op_name:
            return scope(instruction.op_name) or OTHER
        for neighbours in (self._read, self._reading):
            pending = [name]
            for each in pending:
                if found := scope(self.instructions[each].op_name):
                    return found
                if not self.instructions[each].op_name:
                    pending += [x for x in neighbours[each] if x not in pending]
        return OTHER


def _instruction(root: str, name: str, results: str, opcode: str, rest: str) -> Instruction:
    operands, _, attributes = rest.partition(")")
    index = operands if opcode == "parameter" else dict(_INDEX.findall(attributes)).get("index", 0)
    return Instruction(
        name,
        opcode,
        tuple(
            Array(dtype, tuple(int(n) for n in shape.split(",") if n))
            for dtype, shape in _SHAPE.findall(results)
        ),
        tuple(_NAME.findall(operands)),
        attributes,
        bool(root),
        int(index),
    )

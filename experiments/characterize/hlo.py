"""The instructions of a compiled program that run, how often, and the class of each.

The class of an instruction is the outermost `jax.named_scope` in which it was traced, forward or
backward; the class of a collective is its kind. XLA keeps the scopes in ``op_name``, among the
names of transformations and loops.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Mapping, Sequence

from dlrm_jax.programs import hlo
from experiments.characterize.groups import Groups, read_groups

OTHER = "other"
"""The class of instructions in no scope."""

COLLECTIVES = (
    "all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip

# Containers: they run their own instructions and do nothing else in that time.
CONTAINERS = ("while", "call")
# Instructions without execution: names for parts of existing arrays.
_SILENT = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")

_INDEX = re.compile(r"\bindex=(\d+)")
_PARAMETER = re.compile(r"^(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TRANSFORMED = re.compile(r"(?:jvp|transpose|vmap|remat|checkpoint)\((.*)\)")
_STRUCTURE = re.compile(
    r"while|body|cond|branch_\d+_fun|scan|closed_call|eval_jaxpr|shard_map|checkpoint"
    r"|rematted_computation|custom_[jv][vj]p_call"
)


class Instruction(hlo.Instruction):
    """An instruction, with what is asked of it here."""

    __slots__ = ()

    @property
    def number(self) -> int:
        """The number of a parameter, or of the tuple's element that it takes; 0 for others."""
        found = (_PARAMETER if self.opcode == "parameter" else _INDEX).search(self.attributes)
        return int(found[1]) if found else 0

    @property
    def nbytes(self) -> int:
        """The bytes of all results."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def collective(self) -> str | None:
        """The kind of a collective, without ``-start`` or ``-done``; None for others."""
        kind = self.opcode.removesuffix("-start").removesuffix("-done")
        return kind if kind in COLLECTIVES else None

    @property
    def silent(self) -> bool:
        """Whether nothing is run for it."""
        return self.opcode in _SILENT or self.opcode.endswith("-done")

    @property
    def trips(self) -> int | None:
        """The number of trips of a loop; None if it depends on the data."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else None

    @property
    def predecessors(self) -> list[str]:
        """The instructions that must run before it without being its operands."""
        found = re.search(r"control-predecessors=\{([^}]*)\}", self.attributes)
        return re.findall(r"%([\w.-]+)", found[1]) if found else []


def scope(op_name: str) -> str | None:
    """The outermost scope in a name such as ``jit(step)/transpose(jvp(top_mlp))/dot_general``."""
    for part in op_name.split("/")[:-1]:  # the last is the operation
        while found := _TRANSFORMED.fullmatch(part):
            part = found[1]
        if re.fullmatch(r"\w+", part) and not _STRUCTURE.fullmatch(part):
            return part
    return None


class Program:
    """The instructions of a compiled program, read from `jax.stages.Compiled.as_text`."""

    def __init__(self, text: str):
        program = hlo.read(text)
        self.entry = program.entry
        self.computations = {
            name: [Instruction(*each) for each in computation.instructions.values()]
            for name, computation in program.computations.items()
        }
        self.instructions = {x.name: x for own in self.computations.values() for x in own}
        found = re.search(r"num_partitions=(\d+)", program.header)
        self.devices = int(found[1]) if found else 1

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions of its operands."""
        return [self.instructions[name] for name in instruction.operands]

    def inside(self, container: Instruction) -> tuple[list[str], int]:
        """The computations that a loop or a call runs, with the number of their executions.

        The number is 1 if it depends on the data; only then a condition runs, too.
        """
        kinds = ["to_apply", "body"]
        if container.opcode == "while" and container.trips is None:
            kinds = ["condition", "body"]
        return container.called(*kinds), container.trips or 1

    @functools.cached_property
    def executions(self) -> dict[str, int]:
        """The number of executions of each instruction that isn't fused in another."""
        found: collections.Counter[str] = collections.Counter()

        def visit(computation: str, times: int) -> None:
            for instruction in self.computations[computation]:
                if instruction.opcode in CONTAINERS:
                    computations, trips = self.inside(instruction)
                    for each in computations:
                        visit(each, times * trips)
                elif not instruction.silent:
                    found[instruction.name] += times

        visit(self.entry, 1)
        return found

    @functools.cached_property
    def groups(self) -> dict[str, Groups]:
        """The groups of devices of each collective."""
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
    def _neighbours(self) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
        """The instructions that each instruction reads, and those that read it."""
        read = {name: each.operands for name, each in self.instructions.items()}
        reading: dict[str, list[str]] = {name: [] for name in read}
        for name, operands in read.items():
            for operand in operands:
                reading[operand].append(name)
        return read, reading

    def _class_of(self, name: str) -> str:
        """The class of an instruction; one that XLA has made up has the class of its input.

        If that is an argument, it has the class of its reader.
        """
        instruction = self.instructions[name]
        if instruction.collective:
            return instruction.collective
        if instruction.op_name:
            return scope(instruction.op_name) or OTHER
        for neighbours in self._neighbours:
            pending = [name]
            for each in pending:
                if found := scope(self.instructions[each].op_name):
                    return found
                if not self.instructions[each].op_name:
                    pending += [x for x in neighbours[each] if x not in pending]
        return OTHER

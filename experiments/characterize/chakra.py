"""Writes a profiled step as a Chakra execution trace, which simulators such as ASTRA-sim replay.

Each device has a file ``NAME.DEVICE.et`` of protocol buffers, each preceded by its length: one
``GlobalMetadata``, then a ``Node`` for each instruction that the device runs; those of a loop occur
once per trip. ``NAME.groups.json`` contains the devices of each ``pg_name`` of a collective.

The schema is MLCommons' et_def.proto (https://github.com/mlcommons/chakra, MIT license;
arXiv 2305.14516), restated here as far as a step needs it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, proto

from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing, write_json
from dlrm_jax.programs.hlo import Array
from experiments.characterize.cost import cost, table_arrays
from experiments.characterize.hlo import CONTAINERS, Instruction, Program

VERSION = "1.0.0"
COMP_NODE, COMM_COLL_NODE = 4, 7
COLLECTIVE_TYPES = {
    "all-reduce": 0,
    "all-gather": 2,
    "collective-broadcast": 5,
    "all-to-all": 6,
    "ragged-all-to-all": 6,
    "reduce-scatter": 7,
}

# A node's type is an enum there, which is written as an int32.
_MESSAGES = {
    "AttributeProto": (
        "1 string name", "9 int64 int64_val", "13 uint64 uint64_val", "27 bool bool_val",
        "29 string string_val",
    ),
    "GlobalMetadata": ("1 string version",),
    "Node": (
        "1 uint64 id", "2 string name", "3 int32 type", "4 uint64* ctrl_deps",
        "5 uint64* data_deps", "7 uint64 duration_micros", "10 AttributeProto* attr",
    ),
}  # fmt: skip


def _schema() -> dict[str, Any]:
    """The classes of the messages."""
    package = "ChakraProtoMsg"
    file = descriptor_pb2.FileDescriptorProto(name="et_def.proto", package=package, syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, kind, name in map(str.split, fields):
            field = described.field.add(name=name, number=int(number))
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in _MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = field.Type.Value(f"TYPE_{kind.upper()}")
            if name.endswith("_val"):
                field.oneof_index = 0
        if message == "AttributeProto":
            described.oneof_decl.add(name="value")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name], pool)


SCHEMA = {name.rpartition(".")[2]: message for name, message in _schema().items()}
"""The classes `GlobalMetadata`, `Node` and `AttributeProto`."""


def write(
    program: Program, seconds: Mapping[tuple[str, int], float], directory: Path, name: str
) -> None:
    """Writes ``NAME.DEVICE.et`` for each device, and ``NAME.groups.json``.

    ``seconds`` is the duration of each instruction, by its name and the device.

    Raises:
        UserError: the schema has no type for one of the collectives.
    """
    groups = sorted({group for groups in program.groups.values() for group in groups})
    numbers = {group: number for number, group in enumerate(groups, start=1)}
    write_json(directory / f"{name}.groups.json", {numbers[g]: list(g) for g in groups})
    for device in range(program.devices):
        nodes = _Nodes(program, seconds, device, numbers)
        nodes.run(program.entry)
        file = io.BytesIO()
        for message in (SCHEMA["GlobalMetadata"](version=VERSION), *nodes.found):
            proto.serialize_length_prefixed(message, file)
        with replacing(directory / f"{name}.{device}.et") as path:
            path.write_bytes(file.getvalue())


_Source = Any  # the nodes that an array comes from, a frozenset of ids; or a tuple of such sets


class _Nodes:
    """The nodes of one device, in the order in which the device runs the program."""

    def __init__(
        self,
        program: Program,
        seconds: Mapping[tuple[str, int], float],
        device: int,
        groups: Mapping[tuple[int, ...], int],
    ):
        self.found: list[Any] = []
        self._program = program
        self._seconds = seconds
        self._device = device
        self._groups = groups
        tables = table_arrays(program)
        self._described = {
            name: self._describe(program.instructions[name], tables) for name in program.executions
        }

    def run(self, computation: str, arguments: Sequence[_Source] = ()) -> _Source:
        """Visits a computation, the entry or another, and returns the source of its result."""
        sources: dict[str, _Source] = {}
        nodes: dict[str, int] = {}
        result: _Source = frozenset()
        for instruction in self._program.computations[computation]:
            operands = [sources[name] for name in instruction.operands]
            if instruction.opcode == "parameter":
                result = arguments[instruction.number] if arguments else frozenset()
            elif instruction.opcode == "tuple":
                result = tuple(operands)
            elif instruction.opcode == "get-tuple-element" and isinstance(operands[0], tuple):
                result = operands[0][instruction.number]
            elif instruction.silent:
                result = _all(operands)
            elif instruction.opcode in CONTAINERS:
                computations, times = self._program.inside(instruction)
                for _ in range(times):
                    # A loop's body comes last; its result is the input of the next trip.
                    *_, result = [self.run(inner, operands) for inner in computations]
                    operands = [result]
            else:
                before = [nodes[name] for name in instruction.predecessors if name in nodes]
                nodes[instruction.name] = self._add(instruction, _all(operands), before)
                result = frozenset([nodes[instruction.name]])
            sources[instruction.name] = result
            if instruction.is_root:
                return result
        raise ValueError(f"{computation}: expected it to have a root")

    def _describe(self, instruction: Instruction, tables: frozenset[Array]) -> Any:
        """The node of an instruction, without what differs between its executions."""
        node = SCHEMA["Node"](
            name=instruction.name,
            type=COMM_COLL_NODE if instruction.collective else COMP_NODE,
            duration_micros=round(1e6 * self._seconds.get((instruction.name, self._device), 0)),
        )
        node.attr.add(name="is_cpu_op", bool_val=False)  # simulators send from accelerators only
        node.attr.add(name="class", string_val=self._program.classes[instruction.name])
        if instruction.collective:
            node.attr.add(name="comm_type", int64_val=_type_of(instruction))
            node.attr.add(name="comm_size", int64_val=instruction.nbytes)
            (group,) = [g for g in self._program.groups[instruction.name] if self._device in g]
            node.attr.add(name="pg_name", string_val=str(self._groups[group]))
        else:
            done = cost(self._program, instruction, tables)
            node.attr.add(name="num_ops", int64_val=round(done.flops))
            node.attr.add(name="tensor_size", uint64_val=round(done.nbytes + done.row_bytes))
        return node

    def _add(self, instruction: Instruction, data: Iterable[int], before: Iterable[int]) -> int:
        node = SCHEMA["Node"]()
        node.CopyFrom(self._described[instruction.name])
        node.id = len(self.found) + 1
        node.data_deps.extend(sorted(data))
        node.ctrl_deps.extend(sorted(before))
        self.found.append(node)
        return node.id


def _all(sources: Iterable[_Source]) -> frozenset[int]:
    """The nodes of several sources together."""
    return frozenset().union(*(_all(s) if isinstance(s, tuple) else s for s in sources))


def _type_of(collective: Instruction) -> int:
    kind = collective.collective
    if kind not in COLLECTIVE_TYPES:
        raise UserError(
            f"expected collectives that Chakra has a type for, {', '.join(COLLECTIVE_TYPES)}; the "
            f"step has {kind} ({collective.name}); leave --workdir out"
        )
    return COLLECTIVE_TYPES[kind]

"""Operations and bytes of a program's instructions, on one device, for each execution.

Matrix products are counted as XLA shows them, as it does for CPUs; a vendor library's products in
a custom call are invisible.
"""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

from dlrm_jax.native.flops import native_flops
from dlrm_jax.programs.hlo import Array, bits
from experiments.characterize.hlo import Instruction, Program

# One operation per element of the result; moves and comparisons aren't arithmetic.
_ELEMENTWISE = frozenset(
    ("add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "power",
     "sqrt", "rsqrt", "cbrt", "exponential", "exponential-minus-one", "log", "log-plus-one",
     "logistic", "tanh", "erf", "sine", "cosine", "atan2", "remainder")
)  # fmt: skip
# One operation per element of an operand, the one with this number.
_REDUCTIONS = {"reduce": 0, "reduce-window": 0, "all-reduce": 0, "reduce-scatter": 0, "scatter": 2}
_NATIVE = re.compile(r'custom_call_target="(dlrm_jax_\w+)"')
# Instructions that read parts of their first operand.
_CUTS = ("gather", "slice", "dynamic-slice")
# Instructions that change a part of an array in place, by another operand.
_UPDATES = {"scatter": 2, "dynamic-update-slice": 1}


class Cost(NamedTuple):
    """The cost of instructions.

    Attributes:
        flops: 2 m n k for a product, 2 d (4 d in the derivative) for each pair of a native
            interaction, one for each element of other arithmetic on floats, and one for each
            element of a row that a native kernel reads or writes.
        nbytes: bytes read and written, of whole arrays or the used parts, without tables.
        row_bytes: bytes of rows of tables and their optimizer state, one row for each id.
    """

    flops: float = 0.0
    nbytes: float = 0.0
    row_bytes: float = 0.0


def class_costs(program: Program, tables: frozenset[Array]) -> dict[str, Cost]:
    """The costs of a step on all devices, by class."""
    costs: dict[str, Cost] = collections.defaultdict(Cost)
    for name, times in program.executions.items():
        once = cost(program, program.instructions[name], tables)
        pairs = zip(costs[program.classes[name]], once, strict=True)
        costs[program.classes[name]] = Cost(*(x + times * program.devices * y for x, y in pairs))
    return dict(costs)


def cost(program: Program, instruction: Instruction, tables: frozenset[Array]) -> Cost:
    """The cost of an instruction that isn't fused in another; ``tables`` as of `table_arrays`."""
    if instruction.collective:  # which may send a table
        tables = frozenset()
    sources = list(enumerate(program.operands(instruction)))
    native = _NATIVE.search(instruction.attributes)
    if native and "interact" in native[1]:  # vectors, without a table
        tables = frozenset()
    if native:  # kernels on rows have an operand of ids
        ids = sum(s.arrays[0].size for _, s in sources if s.arrays[0].dtype == "s32")
        whole = [x for _, source in sources for x in source.arrays] + [*instruction.arrays]
        moved = [
            (x, ids * x.nbytes // x.dims[0] if _plain(x) in tables else x.nbytes) for x in whole
        ]
    else:
        moved = [(x, _read(program, instruction, i, x)) for i, s in sources for x in s.arrays]
        moved += [(x, _written(program, instruction, x)) for x in instruction.arrays]
    flops = sum(_flops(program, part) for part in _fused(program, instruction))
    if native:
        flops += sum(
            8 * nbytes / bits(array.dtype) for array, nbytes in moved if _plain(array) in tables
        )
    return Cost(
        flops,
        sum(nbytes for array, nbytes in moved if _plain(array) not in tables),
        sum(nbytes for array, nbytes in moved if _plain(array) in tables),
    )


def table_arrays(program: Program) -> frozenset[Array]:
    """The shapes and types of the step's tables and their optimizer state on a device."""
    return frozenset(
        _plain(array)
        for instruction in program.computations[program.entry]
        if instruction.op_name.startswith("state.embedding")
        for array in instruction.arrays
    )


def _plain(array: Array) -> Array:
    """A shape and a type, in whatever layout."""
    return array._replace(layout="")


def _fused(program: Program, instruction: Instruction) -> list[Instruction]:
    """The instructions that are fused in this one, or itself."""
    if instruction.opcode != "fusion":
        return [instruction]
    return program.computations[instruction.called("calls")[0]]


def _flops(program: Program, instruction: Instruction) -> float:
    if not instruction.arrays or not instruction.arrays[0].dtype.startswith(("f", "bf")):
        return 0.0
    size = instruction.arrays[0].size
    if instruction.opcode == "dot":
        left = program.operands(instruction)[0].arrays[0].dims
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        assert found is not None
        return 2.0 * size * math.prod(left[int(axis)] for axis in found[1].split(",") if axis)
    if native := _NATIVE.search(instruction.attributes):
        operands = [x.arrays[0].dims for x in program.operands(instruction)]
        results = [x.dims for x in instruction.arrays]
        return float(native_flops(native[1], operands, results))
    if instruction.opcode in _REDUCTIONS:
        operand = program.operands(instruction)[_REDUCTIONS[instruction.opcode]]
        return float(operand.arrays[0].size)
    return float(size) if instruction.opcode in _ELEMENTWISE else 0.0


def _read(program: Program, instruction: Instruction, number: int, array: Array) -> int:
    """The bytes that an instruction reads of an operand, of which it may first take a part."""
    fused = _fused(program, instruction)
    if fused == [instruction]:
        return _taken(program, instruction, number, array)
    pending = [part for part in fused if part.opcode == "parameter" and part.number == number]
    nbytes, seen = 0, set()
    for source in pending:
        for user in fused:
            for place, operand in enumerate(user.operands):
                if operand != source.name:
                    continue
                # A part of values that are computed elementwise needs only its own elements.
                elementwise = user.arrays[0].size == array.size
                if elementwise and not user.is_root and user.opcode not in {*_CUTS, *_UPDATES}:
                    pending += [user] if user.name not in seen else []
                    seen.add(user.name)
                else:
                    nbytes += _taken(program, user, place, array)
    return min(nbytes, array.nbytes)


def _taken(program: Program, user: Instruction, place: int, array: Array) -> int:
    if place == 0 and user.opcode in _CUTS:
        return user.arrays[0].size * bits(array.dtype) // 8
    if place == 0 and user.opcode in _UPDATES:
        return _update_bytes(program, user) if user.opcode == "scatter" else 0
    return array.nbytes


def _written(program: Program, instruction: Instruction, array: Array) -> int:
    updates = [
        _update_bytes(program, part)
        for part in _fused(program, instruction)
        if part.opcode in _UPDATES and part.arrays[0].size == array.size
    ]
    return min(sum(updates), array.nbytes) if updates else array.nbytes


def _update_bytes(program: Program, update: Instruction) -> int:
    return program.operands(update)[_UPDATES[update.opcode]].nbytes

"""All that is read of a compiled program, as an object of JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax

from dlrm_jax.programs.cycles import cycles
from dlrm_jax.programs.hlo import Program, program_of
from dlrm_jax.programs.kernels import custom_target, kernels
from dlrm_jax.programs.large_arrays import Temporary, arguments, temporaries
from dlrm_jax.programs.overlap import overlaps
from dlrm_jax.programs.products import asked_types, products
from dlrm_jax.programs.scatters import scatters

_OF_TABLES = ".embedding.tables["
_OF_STATE = "state."
_LARGEST = 5

_COUNTED = ("fusion", "dot", "convolution", "gather", "scatter", "sort", "while", "conditional")


def report(
    lowered: jax.stages.Lowered,
    compiled: jax.stages.Compiled,
    platform: str,
    tables: Iterable[str],
    seldom: str,
) -> dict[str, Any]:
    """What a train step does on one device.

    Args:
        lowered: step before it is compiled.
        compiled: step.
        platform: JAX's name of the devices, such as gpu.
        tables: keys in the state of the tables with more rows than a batch may touch on a device.
            Arrays as large as one of them are named.
        seldom: part of the names of operations that seldom run.
    """
    program = program_of(compiled)
    given, made = arguments(program), temporaries(program)
    names = [f"{_OF_TABLES}{key!r}]" for key in tables]
    large = [x.array for x in given if any(name in x.name for name in names)]
    least = min((array.padded_nbytes for array in large), default=math.inf)
    as_large = [x for x in made if x.nbytes >= least]
    shapes = {array.dims for array in large}
    counted = kernels(program)
    asked = asked_types(lowered.as_text(debug_info=True))
    return {
        "platform": platform,
        "memory": memory(compiled),
        "kernels": counted._asdict(),
        "operations": operations(program),
        "scatters": [
            {**scatter._asdict(), "may_repeat": scatter.may_repeat, "number": number}
            for scatter, number in scatters(program, seldom).items()
        ],
        "products": [
            {**product._asdict(), "loses": product.loses, "number": sum(names.values()),
             "operations": names}
            for product, names in products(program, platform, asked).items()
        ],
        "overlaps": [each._asdict() for each in overlaps(program, seldom)],
        "cycles": _cycles(program, seldom),
        "largest_temporaries": list(map(_described, made[:_LARGEST])),
        "as_large_as_a_table": list(map(_described, as_large)),
        "copies_of_tables": [
            _described(x) for x in made if x.kind.startswith("copy") and x.array.dims in shapes
        ],
        "not_updated_in_place": [
            x.name for x in given if x.name.startswith(_OF_STATE) and not x.updated
        ],
    }  # fmt: skip


def _cycles(program: Program, seldom: str) -> dict[str, Any] | None:
    found = cycles(program, seldom, _LARGEST)
    return found and {**found._asdict(), "most": [each._asdict() for each in found.most]}


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of each kind of memory on one device."""
    found = compiled.memory_analysis()
    assert found is not None
    return {
        "arguments": found.argument_size_in_bytes,
        "updated_in_place": found.alias_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
        "host_arguments": found.host_argument_size_in_bytes,
        "host_temporaries": found.host_temp_size_in_bytes,
    }


def operations(program: Program) -> dict[str, int]:
    """The number of operations of each kind in a program's text, wherever they are.

    Operations within a fusion count, too. Of calls of kernels from elsewhere, such as those of
    Pallas and of libraries, each target counts for itself.
    """
    found = Counter[str]()
    for instruction in program.instructions():
        if instruction.opcode == "custom-call":
            found[f"custom-call {custom_target(instruction)}"] += 1
        elif instruction.opcode in _COUNTED:
            found[instruction.opcode] += 1
    return dict(sorted(found.items()))


def _described(temporary: Temporary) -> dict[str, Any]:
    return {
        "bytes": temporary.nbytes,
        "array": str(temporary.array),
        "kind": temporary.kind,
        "operation": temporary.op_name,
    }

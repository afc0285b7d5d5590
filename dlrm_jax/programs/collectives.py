"""The collectives of a program, and the bytes of their results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from dlrm_jax.programs.hlo import Program
from dlrm_jax.programs.kernels import COLLECTIVES

_CHANNEL = re.compile(r"channel_id=(\d+)")


def collectives(program: Program, seldom: str) -> list[tuple[str, int]]:
    """Kind and bytes of every collective's result on one device, in the order of the text.

    One that begins and ends in two instructions counts at its end, one in a fusion or in an
    asynchronous computation within it. A TPU's compiler may let one go on in several fusions, each
    of which has it; it has the same channel in all of them.

    Args:
        program: program.
        seldom: part of the names of operations that seldom run; theirs aren't among them.
    """
    found, channels = [], set[tuple[str, str]]()
    fused = {
        name
        for instruction in program.instructions()
        if instruction.opcode == "fusion"
        for name in instruction.called("calls")
    }
    everywhere = (
        (computation.name in fused, instruction)
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
    )
    for in_fusion, instruction in everywhere:
        kind = instruction.opcode.removesuffix("-done")
        # What one that begins gives has other arrays, too.
        if kind in COLLECTIVES and seldom not in instruction.op_name:
            channel = _CHANNEL.search(instruction.attributes)
            if in_fusion and channel:  # elsewhere, all may have the same one
                if (kind, channel[1]) in channels:
                    continue
                channels.add((kind, channel[1]))
            found.append((kind, sum(array.nbytes for array in instruction.arrays)))
    return found


def bytes_by_kind(collectives: Iterable[tuple[str, int]]) -> Counter[str]:
    """The bytes of collectives of each kind."""
    found = Counter[str]()
    for kind, nbytes in collectives:
        found[kind] += nbytes
    return found


def as_all_reduces(planned: Counter[str], found: Counter[str], devices: int) -> Counter[str]:
    """What is planned, with reduce-scatters and all-gathers that the compiler replaces.

    XLA's compiler for TPUs makes an all-reduce of whole arrays of a reduce-scatter, of which each
    device then takes its part, and of an all-gather of small ones.

    Args:
        planned: bytes of the results on one device by kind.
        found: the same of the compiled program.
        devices: number of devices that take part.
    """
    result = Counter(planned)
    for kind, times in (("reduce-scatter", devices), ("all-gather", 1)):
        missing = max(planned[kind] - found[kind], 0)
        result[kind] -= missing
        result["all-reduce"] += times * missing
    return +result


def with_joined_sums(planned: Counter[str], found: Counter[str], norms: int) -> Counter[str]:
    """What is planned, with norms that are added up before they are sent.

    XLA's compilers for accelerators make one all-reduce of a sum of several, such as the squares of
    parts of a gradient.

    Args:
        planned: bytes of the results on one device by kind.
        found: the same of the compiled program.
        norms: bytes of the planned all-reduces whose results are only added up.
    """
    missing = planned["all-reduce"] - found["all-reduce"]
    return planned - Counter({"all-reduce": missing}) if 0 < missing < norms else planned

"""Runs over several processes: agreement on what only one of them knows.

Each process owns some of the mesh's devices and runs the same program on its part of every batch.
All processes use arrays on the mesh together and in the same order; a process that skips a
computation makes the others wait. So facts that only one process knows (a signal, the files on a
disk) must first be agreed on here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt8

from dlrm_jax.errors import DamagedCheckpointError, UserError

_CHUNK = 1024  # bytes
_PIECE = 1 << 22  # bytes that a process sends at a time

# Errors that are raised with the same type in all processes; a class comes before its base.
_SHARED = {
    "DamagedCheckpointError": DamagedCheckpointError, "UserError": UserError, "OSError": OSError
}  # fmt: skip


def is_distributed() -> bool:
    """Whether the run has several processes."""
    return jax.distributed.is_initialized()


def is_process_0() -> bool:
    """Whether this is process 0, which writes what is written once: logs, metadata, results."""
    return jax.process_index() == 0


Ask = Callable[[Any], Any]
"""A function in process 0 of a request to all processes, a JSON value; it gives their answer."""


def on_process_0(action: Callable[[], Any]) -> Any:
    """Calls a function in process 0 while the others wait.

    Use it for files: another machine may see them later than this one, or not at all.

    Args:
        action: function that returns a JSON value.

    Returns:
        The value, in all processes.

    Raises:
        UserError, OSError: the function raised it; it is raised again in all processes.
        RuntimeError: the function raised another error; process 0 raises that error itself.
    """
    return led(lambda ask: action(), lambda request: None)


def led(action: Callable[[Ask], Any], answer: Ask) -> Any:
    """As `on_process_0`, for a function that needs what the other processes have.

    Args:
        action: function of `Ask`, in process 0. It calls nothing else that processes do together.
        answer: function of a request, which all processes call at the same time. Process 0 gets
            what it returns there.
    """
    if not is_distributed():
        return action(answer)
    if not is_process_0():
        while "request" in (ended := json.loads(_broadcast(b""))):
            answer(ended["request"])
        if "error" in ended:
            raise _SHARED.get(ended["error"], RuntimeError)(*ended["arguments"])
        return ended["result"]

    def ask(request: Any) -> Any:
        _broadcast(json.dumps({"request": request}).encode())
        return answer(request)

    failure = None
    try:
        ended = {"result": action(ask)}
    except Exception as error:  # raised below, when the others know
        failure = error
        kind = next((k for k, cls in _SHARED.items() if isinstance(error, cls)), None)
        arguments = list(error.args) if kind else [repr(error)]
        if isinstance(error, OSError) and error.filename is not None:
            arguments.append(str(error.filename))  # which isn't among them
        ended = {"error": kind, "arguments": arguments}
    ended = json.loads(_broadcast(json.dumps(ended).encode()))
    if failure is not None:
        raise failure
    return ended["result"]


def check_same(
    values: Mapping[str, Any], advice: str = "give all of them the same flags and data"
) -> None:
    """Checks that all processes have the same values.

    Args:
        values: JSON values by name.
        advice: remedy for the message.

    Raises:
        UserError: a value differs from that of process 0; the message names the first one.
    """
    if not is_distributed():
        return
    expected = on_process_0(lambda: dict(values))
    for name, value in json.loads(json.dumps(values)).items():
        if value != expected[name]:
            raise UserError(
                f"{name} is {value} in process {jax.process_index()} and {expected[name]} in "
                f"process 0; {advice}"
            )


def _broadcast(content: bytes) -> bytes:
    """Sends the content of process 0 over the devices, in chunks so that few sizes are compiled."""
    size = int(_exchanged("first", np.array(len(content), np.int32)))
    padded = np.zeros(-(-size // _CHUNK) * _CHUNK, np.uint8)
    if is_process_0():
        padded[:size] = np.frombuffer(content, np.uint8)
    return _exchanged("first", padded)[:size].tobytes()


def gathered(values: np.ndarray) -> np.ndarray:
    """The values of all P processes, [P, ...]; they have one shape."""
    return _exchanged("all", values) if is_distributed() else values[None]


def gathered_bytes(content: UInt8[np.ndarray, " n"]) -> list[UInt8[np.ndarray, " _"]]:
    """The bytes of all processes, in their order, however many each has."""
    if not is_distributed():
        return [content]
    # An int32 counts up to 2 GiB.
    halves = gathered(np.array(divmod(len(content), 1 << 30), np.int32)).tolist()
    found = [np.zeros((high << 30) + low, np.uint8) for high, low in halves]
    longest = max(map(len, found))
    for first in range(0, longest, _PIECE):
        # One of a few sizes, each of which is compiled.
        size = min(_PIECE, max(_CHUNK, 1 << (longest - first - 1).bit_length()))
        own = content[first : first + size]
        pieces = gathered(np.pad(own, (0, size - len(own))))
        for whole, piece in zip(found, pieces, strict=True):
            whole[first : first + size] = piece[: max(0, len(whole) - first)]
    return found


def gathered_texts(text: str) -> list[str]:
    """The texts of all P processes, in their order."""
    found = gathered_bytes(np.frombuffer(encoded(text), np.uint8))
    return [content.tobytes().decode() for content in found]


def encoded(text: str) -> bytes:
    """A text for other processes, as UTF-8: names of files in it may be none."""
    return text.encode(errors="backslashreplace")


def agreed(value: int) -> int:
    """The largest value over all processes, which all of them get.

    It exchanges a few bytes, which takes half a millisecond between processes of one machine.
    """
    return all_agreed([value])[0]


def all_agreed(values: Sequence[int]) -> list[int]:
    """As `agreed`, of several values in one exchange."""
    if not is_distributed():
        return list(values)
    return _exchanged("largest", np.array(values, np.int32)).tolist()


_PROGRAMS = {"first": lambda x: x[0], "all": lambda x: x, "largest": lambda x: x.max(axis=0)}


def _exchanged(program: str, values: np.ndarray) -> np.ndarray:
    """What a program makes of the values of all processes.

    One device of each process takes part, the one that results are read from. Of several, only
    that one's result would be waited for, and another could begin the next exchange before it has
    ended this one. Gloo tells exchanges of the same devices apart by their order alone.
    """
    return np.asarray(begun(program, values))


def begun(program: str, values: np.ndarray) -> jax.Array:
    """The result of `_exchanged`, which the devices compute when they have done all before it."""
    split, run = _on_one_device_each(program)
    return run(jax.make_array_from_process_local_data(split, values[None]))


@functools.cache
def _on_one_device_each(program: str) -> tuple[NamedSharding, jax.stages.Wrapped]:
    first: dict[int, Any] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    mesh = Mesh(np.array([first[i] for i in sorted(first)]), ("processes",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("processes"))
    return split, jax.jit(_PROGRAMS[program], out_shardings=everywhere)

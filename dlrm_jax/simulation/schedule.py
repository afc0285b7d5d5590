"""A schedule of operations on a device's lanes, each of which runs one operation at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dlrm_jax.embedding.planning.program import Resource

Lane = str
LANES: Mapping[Resource, Lane] = {
    "memory": "device",
    "rows": "device",
    "products": "device",
    "links": "links",
    "network": "network",
}
"""The lane of each resource: what a device computes and copies shares its memory and cores; links
and network work beside it."""


class Operation(NamedTuple):
    """A part of a step.

    Attributes:
        name: unique name, for people.
        resource: resource that takes its time.
        seconds: seconds that it takes.
        after: names of the operations that it needs.
        waits: whether the device does nothing else meanwhile, whatever the resource.
    """

    name: str
    resource: Resource
    seconds: float
    after: tuple[str, ...] = ()
    waits: bool = False

    @property
    def lane(self) -> Lane:
        """The lane that it runs on."""
        return LANES["memory" if self.waits else self.resource]


class Slot(NamedTuple):
    """An operation's place in a schedule.

    Attributes:
        operation: the operation.
        start: seconds from the start of the step.
        end: seconds from the start of the step.
        waited_for: name of the operation whose end it waited for; empty at the start.
    """

    operation: Operation
    start: float
    end: float
    waited_for: str


def schedule(operations: Sequence[Operation]) -> tuple[Slot, ...]:
    """Starts each operation as soon as it can.

    Of several that wait for a lane, the first is the one with the longest way to the end, or the
    first of the list: whichever makes the step shorter.

    Args:
        operations: operations in an order in which each comes after those that it needs.
    """
    left: dict[str, float] = {}  # seconds from an operation's start to the end of the step
    for operation in reversed(operations):
        later = [left[other.name] for other in operations if operation.name in other.after]
        left[operation.name] = operation.seconds + max(later, default=0.0)
    by_length = sorted(operations, key=lambda operation: -left[operation.name])
    return min(_in_order(by_length), _in_order(operations), key=seconds_of)


def _in_order(operations: Sequence[Operation]) -> tuple[Slot, ...]:
    """The schedule in which the first of the waiting operations goes first."""
    done: dict[str, Slot] = {}
    last: dict[Lane, Slot] = {}  # of each lane

    def slot(operation: Operation) -> Slot:
        """The operation's place if it is the next one of its lane."""
        before = [done[name] for name in operation.after]
        before += [last[lane] for lane in [operation.lane] if lane in last]
        latest = max(before, key=lambda other: other.end, default=None)
        start, name = (latest.end, latest.operation.name) if latest else (0.0, "")
        return Slot(operation, start, start + operation.seconds, name)

    waiting = list(operations)
    while waiting:
        ready = [slot(x) for x in waiting if all(name in done for name in x.after)]
        chosen = min(ready, key=lambda x: x.start)
        waiting.remove(chosen.operation)
        done[chosen.operation.name] = last[chosen.operation.lane] = chosen
    return tuple(done.values())


def critical_path(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """The operations that the end of a step waits for, in order."""
    named = {slot.operation.name: slot for slot in slots}
    path = [max(slots, key=lambda slot: slot.end)]
    while path[-1].waited_for:
        path.append(named[path[-1].waited_for])
    return tuple(reversed(path))


def seconds_of(slots: Sequence[Slot]) -> float:
    """The seconds of a step."""
    return max(slot.end for slot in slots)

"""Profiles a step and divides its time among classes."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.characterize.hlo import CONTAINERS, Program

IDLE = "idle, dispatch"
"""The class of the instants in which nothing runs."""
DATA = "data"
"""The class, and the annotation, of loading and placing batches."""
WINDOW = "profiled steps"
"""The annotation around the counted steps."""


class Event(NamedTuple):
    """An interval in which something ran, in seconds from the profile's start.

    Attributes:
        name: name of the instruction, or `DATA`.
        device: number of the device in the mesh.
    """

    name: str
    device: int
    start: float
    end: float


class Profile(NamedTuple):
    """The events from the first step's start to the last one's end, by their starts."""

    steps: int
    start: float
    end: float
    events: tuple[Event, ...]


def record(run: Callable[[int], Any], steps: int, module: str) -> Profile:
    """Profiles so many steps of a module; ``run`` runs them within an annotation `WINDOW`."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # would record every function call, and slow it down
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            run(steps)
        (path,) = Path(directory).rglob("*.xplane.pb")
        return _read(jax.profiler.ProfileData.from_file(str(path)), steps, module)


def _read(data: Any, steps: int, module: str) -> Profile:
    events, windows = [], []
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                start, end = event.start_ns / 1e9, event.end_ns / 1e9
                if event.name == WINDOW:
                    windows.append((start, end))
                elif event.name == DATA:
                    events.append(Event(DATA, 0, start, end))
                elif (stats := dict(event.stats)).get("hlo_module") == module and "hlo_op" in stats:
                    device = int(stats.get("device_ordinal", 0))
                    events.append(Event(stats["hlo_op"], device, start, end))
    ((start, end),) = windows
    return Profile(steps, start, end, tuple(sorted(events, key=lambda event: event.start)))


def without_waiting(
    events: Iterable[Event], groups: Mapping[str, Sequence[Sequence[int]]]
) -> Iterator[Event]:
    """The events, with collectives cut to the time after the arrival of their last device.

    Before that, the early devices wait for the last one's work, which is an event of its own.
    ``events`` are in the order of their starts.
    """
    arrived: dict[tuple[str, int, int], float] = {}
    numbered = []
    count: collections.Counter[tuple[str, int]] = collections.Counter()
    for event in events:
        group = groups.get(event.name)
        if group is None:
            yield event
            continue
        together = next(i for i, devices in enumerate(group) if event.device in devices)
        key = (event.name, together, count[event.name, event.device])
        count[event.name, event.device] += 1
        arrived[key] = max(arrived.get(key, 0), event.start)
        numbered.append((key, event))
    for key, event in numbered:
        yield event._replace(start=min(arrived[key], event.end))


def class_seconds(profile: Profile, program: Program) -> dict[str, float]:
    """Seconds of a step by class; they sum to the profiled step.

    Raises:
        KeyError: the profile has an instruction that the program lacks.
    """
    intervals = []
    for event in without_waiting(profile.events, program.groups):
        if event.name == DATA:
            intervals.append((DATA, event.start, event.end))
        elif program.instructions[event.name].opcode not in CONTAINERS:
            intervals.append((program.classes[event.name], event.start, event.end))
    whole = shares(intervals, profile.start, profile.end)
    return {name: seconds / profile.steps for name, seconds in whole.items()}


def shares(
    intervals: Iterable[tuple[str, float, float]], start: float, end: float
) -> dict[str, float]:
    """Divides the time from start to end among classes, given the interval of each execution.

    An instant is divided equally among the classes that run at that instant, on any thread or
    device; `IDLE` gets it if none runs.
    """
    changes = []
    for name, begun, ended in intervals:
        begun, ended = max(begun, start), min(ended, end)
        if begun < ended:
            changes += [(begun, name, 1), (ended, name, -1)]
    found: dict[str, float] = collections.defaultdict(float)
    running: collections.Counter[str] = collections.Counter()
    now = start
    for instant, name, change in [*sorted(changes), (end, IDLE, 0)]:
        active = [each for each, number in running.items() if number] or [IDLE]
        for each in active:
            found[each] += (instant - now) / len(active)
        running[name] += change
        now = instant
    return dict(found)


def durations(profile: Profile, program: Program) -> dict[tuple[str, int], float]:
    """The mean seconds of an execution of each instruction on each device."""
    taken: dict[tuple[str, int], list[float]] = collections.defaultdict(list)
    for event in without_waiting(profile.events, program.groups):
        taken[event.name, event.device].append(event.end - event.start)
    return {key: sum(seconds) / len(seconds) for key, seconds in taken.items()}

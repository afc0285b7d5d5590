"""What is measured of an artifact, in which order, and the targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from experiments.benchmarks.peers.contestant import Contestant
from experiments.benchmarks.serving import in_process as process
from experiments.benchmarks.serving import over_http as http
from experiments.benchmarks.serving import servers
from experiments.benchmarks.serving.in_process import Figure, Rows
from experiments.benchmarks.serving.report import Entry, Target

_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all measurements.

    Attributes:
        python: Python of the environment with PyTorch and LoadGen.
        part: form of PyTorch's dense layers.
        batch_sizes: rows of a batch in process.
        request_rows: rows of a request, or of LoadGen's sample.
        rounds: rounds in which all are timed.
        seconds: seconds of each timing.
    """

    python: Path
    part: str
    batch_sizes: Sequence[int]
    request_rows: Sequence[int]
    rounds: int
    seconds: float


@dataclasses.dataclass
class Results:
    """What was found; figures are printed at once.

    Attributes:
        entries: figures.
        targets: figures that are aimed at.
        notes: lines of text.
        versions: versions of libraries.
    """

    entries: list[Entry] = dataclasses.field(default_factory=list)
    targets: list[Target] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, what: str, row_format: str, rows: int, figures: Sequence[Figure]) -> Entry:
        """Adds and prints figures."""
        entry = Entry(what, row_format, rows, figures)
        self.entries.append(entry)
        print(entry.lines(), flush=True)
        return entry

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "entries": [x.as_json() for x in self.entries],
            "targets": [x.as_json() for x in self.targets],
            "notes": self.notes,
            "versions": self.versions,
        }


def in_process(
    artifact: Path,
    row_format: str,
    rows: Rows,
    settings: Settings,
    scratch: Path,
    results: Results,
) -> None:
    """Batches one after the other, and LoadGen's scenarios, in process."""
    seconds, rounds = settings.seconds, settings.rounds
    with ExitStack() as stack:
        ours, fbgemm, asleep = [
            stack.enter_context(Contestant(worker))
            for worker in (
                process.ours(settings.python),
                process.fbgemm(settings.python, settings.part, "active"),
                process.fbgemm(settings.python, settings.part, "passive"),
            )
        ]
        for each in (ours, fbgemm, asleep):
            results.versions |= process.build(each, artifact, rows)
            difference = process.check(each, artifact, scratch)
            results.notes.append(f"{row_format}, {each.name}: golden rows to {difference:.1g}")
        short = min(seconds, 0.5)
        both = [ours, fbgemm]
        for size, figures in process.batches(both, settings.batch_sizes, rounds, short):
            entry = results.add("in process", row_format, size, figures)
            ratio = _ratio(entry.figures[0], entry.figures[1])
            what = f"in process, {row_format}, batch {size}: rows/s over FBGEMM's"
            results.targets.append(Target(what, ratio, 1.2))
        for count in settings.request_rows:
            offline, server = process.loads([ours, asleep], count, rounds, seconds)
            results.add("in process, Offline", row_format, count, offline)
            results.add("in process, Server at half", row_format, count, server)
        parts = {
            size: part
            for size, part in fbgemm.ask("about")["parts"].items()
            if int(size) in settings.batch_sizes
        }
        results.notes.append(f"{row_format}, PyTorch's dense layers by batch size: {parts}")


def over_http(
    artifact: Path, row_format: str, settings: Settings, scratch: Path, results: Results
) -> None:
    """Start, memory, closed loops and LoadGen's scenarios over HTTP."""
    size = servers.read_files(artifact)
    golden = Rows(artifact / "golden" / "dense.npy", artifact / "golden" / "ids.npy")
    with ExitStack() as stack:
        server = stack.enter_context(servers.ours(artifact))
        at_start = servers.memory(server.pid, artifact)
        server.pause()
        python = settings.python
        peer = servers.fastapi(python, artifact, settings.part, settings.request_rows)
        stack.enter_context(peer)
        peer.pause()
        clients = [stack.enter_context(Contestant(http.clients(python))) for _ in range(2)]
        http.connect(clients[0], server, golden)
        http.connect(clients[1], peer, golden)
        targets = [
            http.Target(server, "json", clients[0]),
            http.Target(peer, "fastapi", clients[1]),
            http.Target(server, "binary", clients[0]),
        ]
        for each in targets:
            difference = http.check(each, artifact, scratch)
            results.notes.append(f"{row_format}, {each.name} over HTTP: to {difference:.1g}")
        for count in settings.request_rows:
            _requests(targets, row_format, count, settings, results)
        at_end = servers.memory(server.pid, artifact)
    what = f"HTTP, {row_format}: seconds from start to ready"
    results.targets.append(Target(what, server.ready_seconds, 5, at_most=True))
    what = f"HTTP, {row_format}: resident memory over the artifact's bytes"
    resident = at_end["anonymous"] + at_end["files"]
    results.targets.append(Target(what, resident / size, 1.1, at_most=True))
    results.notes += [
        f"{row_format}, memory {when}, MiB: {found['anonymous'] / _MIB:.0f} anonymous, "
        f"{found['files'] / _MIB:.0f} of mapped files, {found['artifact'] / _MIB:.0f} of these of "
        f"the artifact, which has {size / _MIB:.0f}"
        for when, found in (("when ready", at_start), ("at the end", at_end))
    ]
    results.notes.append(f"{row_format}, FastAPI: {peer.ready_seconds:.1f} s from start to ready")


def _requests(
    targets: Sequence[http.Target],
    row_format: str,
    rows: int,
    settings: Settings,
    results: Results,
) -> None:
    """Requests of so many rows."""
    rounds, seconds = settings.rounds, settings.seconds
    lone = http.closed(targets, rows, 1, rounds, seconds)
    results.add("HTTP, 1 connection", row_format, rows, lone)
    figures = http.closed(targets, rows, http.CONNECTIONS, rounds, seconds)
    results.add(f"HTTP, {http.CONNECTIONS} connections", row_format, rows, figures)
    rates = {x.name: x.median("rate") / rows for x in figures}
    figures = http.offline(targets, rows, rates, rounds, seconds)
    results.add("HTTP, Offline", row_format, rows, figures)
    rates = {x.name: x.median("rate") / rows for x in figures}
    halves = {name: rate / 2 for name, rate in rates.items()}
    half = http.server(targets, rows, halves, rounds, seconds)
    results.add("HTTP, Server at half", row_format, rows, half)
    peaks = http.peaks(targets, rows, rates, min(rounds, 2), seconds)
    results.add("HTTP, Server, peak", row_format, rows, peaks)
    where = f"HTTP, {row_format}, {rows} rows"
    if rows == 1:
        found = lone[0].median("p50_ms")
        results.targets.append(Target(f"{where}: p50 in ms", found, 2, at_most=True))
    found = half[0].median("p99_ms")
    what = f"{where}: p99 at half of the peak in ms"
    results.targets.append(Target(what, found, http.P99_MS, at_most=True))
    what = f"{where}: peak with a p99 of {http.P99_MS:g} ms over FastAPI's"
    results.targets.append(Target(what, _ratio(peaks[0], peaks[1]), 1.5))


def _ratio(a: Figure, b: Figure) -> float:
    below = b.median("rate")
    return a.median("rate") / below if below else float("nan")

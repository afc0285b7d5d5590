"""Predictions over HTTP: this project's server and FastAPI's around FBGEMM, in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.serving.in_process import Figure, Rows, checked, tolerance_of
from experiments.benchmarks.serving.servers import Server
from experiments.benchmarks.timing import in_turn

CONNECTIONS = 32
P99_MS = 10.0
"""The p99 in milliseconds that a server must keep at its peak."""

_STEPS = 5  # of the search for the peak


@dataclasses.dataclass(frozen=True)
class Target:
    """A server, the form of its requests, and the clients that send them."""

    server: Server
    form: str
    clients: Contestant

    @property
    def name(self) -> str:
        """Name of the server, with the form if it is binary."""
        return self.server.name + (", binary" if self.form == "binary" else "")

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The clients' answer; the server runs meanwhile."""
        self.server.go_on()
        answer = self.clients.ask(do, form=self.form, **request)
        self.server.pause()
        return answer


def clients(python: Path) -> Worker:
    """The worker of the clients."""
    module = "experiments.benchmarks.peers.workers.http_clients"
    return Worker("clients", python, module)


def connect(contestant: Contestant, server: Server, rows: Rows) -> None:
    """Connects clients to a server."""
    server.go_on()
    paths = {"dense": str(rows.dense), "ids": str(rows.ids)}
    contestant.ask("connect", port=server.port, **paths)
    server.pause()


def check(target: Target, artifact: Path, directory: Path) -> float:
    """The largest difference from the golden predictions; the clients' rows must be those."""
    output = directory / "probabilities.npy"
    target.ask("check", output=str(output))
    expected = np.load(artifact / "golden" / "probabilities.npy")
    return checked(target.name, np.load(output), expected, tolerance_of(artifact))


def closed(
    targets: Sequence[Target], rows: int, connections: int, rounds: int, seconds: float
) -> list[Figure]:
    """A closed loop: each connection waits for its answer."""
    request = {"rows": rows, "connections": connections, "seconds": seconds}
    return _rounds({x.name: lambda x=x: x.ask("closed", **request) for x in targets}, rounds)


def offline(
    targets: Sequence[Target], rows: int, rates: dict[str, float], rounds: int, seconds: float
) -> list[Figure]:
    """LoadGen's Offline scenario.

    Args:
        targets: servers.
        rows: rows of a sample.
        rates: samples a second that are expected of each.
        rounds: rounds.
        seconds: seconds of each.
    """

    def ask(target: Target) -> dict[str, Any]:
        return _load(target, "offline", rates[target.name], rows, seconds)

    return _rounds({x.name: lambda x=x: ask(x) for x in targets}, rounds)


def server(
    targets: Sequence[Target], rows: int, rates: dict[str, float], rounds: int, seconds: float
) -> list[Figure]:
    """LoadGen's Server scenario at some rates of samples."""

    def ask(target: Target) -> dict[str, Any]:
        return _load(target, "server", rates[target.name], rows, seconds)

    return _rounds({x.name: lambda x=x: ask(x) for x in targets}, rounds)


def peaks(
    targets: Sequence[Target], rows: int, rates: dict[str, float], rounds: int, seconds: float
) -> list[Figure]:
    """The highest rates of LoadGen's Server scenario with a p99 of at most `P99_MS`.

    Halving intervals finds them, from a fifth more than the rates that are given down.
    """

    def search(target: Target) -> dict[str, Any]:
        low, high = 0.0, 1.2 * rates[target.name]
        best = {"rate": 0.0, "p50_ms": float("nan"), "p99_ms": float("nan"), "failed": 0}
        for _ in range(_STEPS):
            middle = (low + high) / 2
            found = _load(target, "server", middle, rows, seconds)
            if found["p99_ms"] <= P99_MS and not found["failed"]:
                low, best = middle, found
            else:
                high = middle
        return best

    return _rounds({x.name: lambda x=x: search(x) for x in targets}, rounds)


def _load(target: Target, scenario: str, rate: float, rows: int, seconds: float) -> dict[str, Any]:
    """LoadGen's figures, with rates of rows."""
    found = target.ask("load", scenario=scenario, rate=rate, rows=rows, seconds=seconds)
    return found | {"rate": rows * found["rate"]}


def _rounds(runs: dict[str, Any], rounds: int) -> list[Figure]:
    return [Figure(name, values) for name, values in in_turn(runs, rounds).items()]

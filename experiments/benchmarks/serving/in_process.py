"""Predictions in process: this project's `Predictor` and FBGEMM's operator, in turn."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.errors import UserError
from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.timing import in_turn

_WORKERS = "experiments.benchmarks.peers.workers"
TOLERANCE = 1e-5
"""Largest difference of two programs' probabilities from the same rows."""

SHORT_TOLERANCE = 0.02
"""The same of layers in bfloat16 or int8, which programs round in other places."""

UNSTEADY = 0.1
"""Two rounds differ by more than this share of the smaller one in figures that are marked."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Files of the rows that are predicted, and where their golden ones are.

    Attributes:
        dense: file of dense features, [N, D].
        ids: file of ids, [N, C].
    """

    dense: Path
    ids: Path


@dataclasses.dataclass(frozen=True)
class Figure:
    """Measurements of the same thing, in rounds.

    Attributes:
        name: name of who was measured.
        values: a dict for each round.
    """

    name: str
    values: Sequence[Mapping[str, float]]

    def median(self, key: str) -> float:
        """The median over the rounds."""
        return statistics.median(x[key] for x in self.values)

    def is_unsteady(self, key: str = "rate") -> bool:
        """Whether two rounds differ by more than `UNSTEADY`."""
        values = [x[key] for x in self.values]
        return max(values) > (1 + UNSTEADY) * min(values)


def ours(python_of_peers: Path) -> Worker:
    """The worker of this project."""
    (packages,) = python_of_peers.parent.parent.glob("lib/python*/site-packages")
    flags = (f"--loadgen={packages}",)
    return Worker("ours", Path(sys.executable), f"{_WORKERS}.our_artifact", flags)


def fbgemm(python: Path, part: str, waits: Literal["active", "passive"]) -> Worker:
    """The worker of FBGEMM's operator with some form of the dense part.

    Args:
        python: Python of its environment.
        part: form of the dense part.
        waits: way in which its threads wait. If they sleep at once, small batches take three times
            as long; if they spin, LoadGen's threads have no processor.
    """
    variables = {"OMP_WAIT_POLICY": waits}
    return Worker("FBGEMM", python, f"{_WORKERS}.torch_artifact", (f"--part={part}",), variables)


def build(contestant: Contestant, artifact: Path, rows: Rows) -> dict[str, Any]:
    """Loads an artifact; returns the versions of libraries."""
    paths = {"dense": str(rows.dense), "ids": str(rows.ids)}
    return contestant.ask("build", artifact=str(artifact), **paths)


def check(contestant: Contestant, artifact: Path, directory: Path) -> float:
    """The largest difference from the golden predictions of an artifact.

    Raises:
        UserError: it is larger than `TOLERANCE`, or `SHORT_TOLERANCE` of short layers.
    """
    golden, output = artifact / "golden", directory / "probabilities.npy"
    paths = {x: str(golden / f"{x}.npy") for x in ("dense", "ids")}
    contestant.ask("check", **paths, output=str(output))
    expected = np.load(golden / "probabilities.npy")
    return checked(contestant.name, np.load(output), expected, tolerance_of(artifact))


def tolerance_of(artifact: Path) -> float:
    """The largest difference that predictions of an artifact may have."""
    note = Manifest.read(artifact).dense_layers
    return TOLERANCE if note is None or note.precision == "float32" else SHORT_TOLERANCE


def checked(
    name: str, found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE
) -> float:
    """The largest difference of probabilities, which is small."""
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:
        raise UserError(
            f"{name} computes something else: expected the golden probabilities to within "
            f"{tolerance:g}, they differ by {difference:g}"
        )
    return difference


def batches(
    contestants: Sequence[Contestant], sizes: Sequence[int], rounds: int, seconds: float
) -> Iterator[tuple[int, list[Figure]]]:
    """Yields the figures of each batch size: batches one after the other."""
    for size in sizes:
        for each in contestants:  # compiles
            each.ask("run", size=size, seconds=0)
        runs = {
            x.name: lambda x=x, size=size: x.ask("run", size=size, seconds=seconds)
            for x in contestants
        }
        results = in_turn(runs, rounds)
        yield size, [Figure(name, values) for name, values in results.items()]


def loads(
    contestants: Sequence[Contestant], rows: int, rounds: int, seconds: float
) -> tuple[list[Figure], list[Figure]]:
    """LoadGen's Offline scenario, and its Server scenario at half of each one's Offline rate."""
    common = {"rows": rows, "seconds": seconds}
    rates = {
        x.name: x.ask("load", scenario="offline", rate=50.0, rows=rows, seconds=1)["rate"]
        for x in contestants
    }

    def offline(x: Contestant) -> dict[str, Any]:
        found = x.ask("load", scenario="offline", rate=rates[x.name], **common)
        rates[x.name] = found["rate"]
        return found

    def server(x: Contestant) -> dict[str, Any]:
        return x.ask("load", scenario="server", rate=rates[x.name] / 2, **common)

    found = []
    for ask in (offline, server):
        results = in_turn({x.name: lambda x=x, ask=ask: ask(x) for x in contestants}, rounds)
        found.append([Figure(name, values) for name, values in results.items()])
    return found[0], found[1]

"""Reports matches: a Markdown table, and everything as JSON."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_jax import processor
from dlrm_jax.files import write_json
from dlrm_jax.native import library
from experiments.benchmarks.peers.load import QUIET
from experiments.benchmarks.peers.match import UNSTEADY, Outcome

COLUMNS = (
    "preset", "rows", "batch", "work", "precision", "peer", "ours, ms", "peer, ms", "peer / ours",
    "quartiles", "loss distance", "our peak, GiB", "peer's peak, GiB", "load elsewhere",
    "core to core, µs",
)  # fmt: skip

_MARK = "\\*"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One match; ``rows`` are as timed, ``whole_rows`` before tables were cut."""

    preset: str
    rows: int
    whole_rows: int
    batch_size: int
    mode: str
    optimizer: str | None
    precision: str
    peer: str
    our_versions: dict[str, str]
    peer_versions: dict[str, str]
    outcome: Outcome

    def row(self) -> str:
        """A row of the table in Markdown."""
        ours, theirs, rounds = self.outcome.ours, self.outcome.theirs, self.outcome.rounds
        lower, median, upper = self.outcome.ratio_quartiles()
        cut = f" of {self.whole_rows:,}" if self.rows != self.whole_rows else ""
        elsewhere, trip = self.outcome.elsewhere, self.outcome.core_round_trip_us
        return _line(
            [
                self.preset,
                f"{self.rows:,}{cut}",
                str(self.batch_size),
                f"{self.mode}, {self.optimizer}" if self.optimizer else self.mode,
                self.precision,
                self.peer,
                _milliseconds(x.ours for x in rounds),
                _milliseconds(x.theirs for x in rounds),
                f"{median:.3g}{_MARK if self.outcome.is_unsteady else ''}",
                f"{lower:.3g} to {upper:.3g}",
                f"{self.outcome.loss_distance:.0e}",
                f"{ours.peak_bytes / 2**30:.2f}",
                f"{theirs.peak_bytes / 2**30:.2f}",
                "unknown" if elsewhere is None else f"{elsewhere:.0%}",
                "unknown" if trip is None else f"{trip['min']:.2f} to {trip['max']:.2f}",
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """All fields, with the ratio."""
        lower, median, upper = self.outcome.ratio_quartiles()
        return {
            **dataclasses.asdict(self),
            "our_seconds": statistics.median(x.ours for x in self.outcome.rounds),
            "peer_seconds": statistics.median(x.theirs for x in self.outcome.rounds),
            "ratio": median,
            "ratio_quartiles": [lower, upper],
            "is_unsteady": self.outcome.is_unsteady,
            "loss_distance": self.outcome.loss_distance,
            "load_elsewhere": self.outcome.elsewhere,
            "core_round_trip_us": self.outcome.core_round_trip_us,
        }


def introduction(products: Mapping[str, Mapping[str, str]]) -> str:
    """What figures depend on: the processor, and libraries of products by precision and side."""
    sets = " ".join(processor.instruction_sets()) or "unknown"
    lines = [
        f"processor: {processor.name()}, {os.cpu_count()} cores, with {sets}",
        f"ours has {'' if library.is_built() else 'no '}native kernels; see BUILD.md",
    ]
    for precision, sides in products.items():
        each = (f"{side} by {name}" for side, name in sides.items())
        lines.append(f"products of {precision}: {', '.join(each)}")
    return "\n".join([*lines, ""])


def header() -> str:
    """The first two lines of the table."""
    return f"{_line(COLUMNS)}\n{_line(['---'] * len(COLUMNS))}"


def footnote(entries: Sequence[Entry]) -> str:
    """What the mark of ratios means, or an empty text if none has one."""
    if not any(entry.outcome.is_unsteady for entry in entries):
        return ""
    return f"\n{_MARK}: the quartiles of the rounds are more than {UNSTEADY:.0%} of the ratio apart"


def warning(entries: Sequence[Entry]) -> str:
    """A warning if matches had rounds in which the machine wasn't quiet, or an empty text."""
    loud = [entry for entry in entries if (entry.outcome.elsewhere or 0.0) > QUIET]
    if not loud:
        return ""
    return (
        f"other programs ran in {len(loud)} of {len(entries)} matches, for more than "
        f"{QUIET:.0%} of the machine's time: these timings mean little"
    )


def write(path: Path, settings: dict[str, Any], entries: Sequence[Entry]) -> None:
    """Writes or replaces the file with these entries."""
    write_json(path, {"settings": settings, "matches": [entry.as_json() for entry in entries]})


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _milliseconds(seconds: Iterable[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.3g}"

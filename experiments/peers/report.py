"""What came of all matches: a table to read, and everything as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.peers.match import Outcome

COLUMNS = (
    "preset", "rows", "batch", "work", "peer", "ours, ms", "peer, ms", "peer / ours", "quartiles",
    "loss distance", "our peak, GiB", "peer's peak, GiB",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """One match.

    Attributes:
        preset: its name.
        rows: of all tables together, as they were.
        whole_rows: before they were cut.
        batch_size: of a step.
        mode: ``"train"`` or ``"infer"``.
        optimizer: of training.
        peer: its name.
        ours_is: versions on our side.
        theirs_is: on the other.
        outcome: of the match.
    """

    preset: str
    rows: int
    whole_rows: int
    batch_size: int
    mode: str
    optimizer: str | None
    peer: str
    ours_is: dict[str, Any]
    theirs_is: dict[str, Any]
    outcome: Outcome

    def row(self) -> str:
        """A row of the table in Markdown."""
        lower, median, upper = self.outcome.quartiles()
        rows = f"{self.rows:,}"
        if self.rows != self.whole_rows:
            rows += f" of {self.whole_rows:,}"
        ours, theirs = self.outcome.ours, self.outcome.theirs
        return _line(
            self.preset,
            rows,
            str(self.batch_size),
            f"{self.mode}, {self.optimizer}" if self.optimizer else self.mode,
            self.peer,
            _milliseconds(ours.seconds),
            _milliseconds(theirs.seconds),
            f"{median:.3g}",
            f"{lower:.3g} – {upper:.3g}",  # noqa: RUF001
            f"{self.outcome.loss_distance:.0e}",
            f"{ours.peak_bytes / 2**30:.2f}",
            f"{theirs.peak_bytes / 2**30:.2f}",
        )

    def as_json(self) -> dict[str, Any]:
        """All of it, with the ratios."""
        lower, median, upper = self.outcome.quartiles()
        return {
            **dataclasses.asdict(self),
            "ratios": self.outcome.ratios,
            "ratio": median,
            "ratio_quartiles": [lower, upper],
            "loss_distance": self.outcome.loss_distance,
        }


def header() -> str:
    """The first two lines of the table."""
    return f"{_line(*COLUMNS)}\n{_line(*['---'] * len(COLUMNS))}"


def write(path: Path, settings: dict[str, Any], entries: list[Entry]) -> None:
    """Replaces the file by one with these entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "matches": [entry.as_json() for entry in entries]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _milliseconds(seconds: tuple[float, ...]) -> str:
    middle = sorted(seconds)[len(seconds) // 2]
    return f"{1e3 * middle:.3g}"

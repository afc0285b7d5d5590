"""Tables and targets of the benchmark, and the machine that they were measured on."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from typing import Any

from dlrm_jax import processor
from dlrm_jax.native import library
from experiments.benchmarks.serving.in_process import UNSTEADY, Figure

HEADER = (
    "| what | format | rows | who | rows/s | p50, ms | p99, ms | ratio |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Figures of the same thing, the first of them ours.

    Attributes:
        what: name of the thing.
        row_format: row format of the tables.
        rows: rows of a batch or of a request.
        figures: figures of all who were measured.
    """

    what: str
    row_format: str
    rows: int
    figures: Sequence[Figure]

    def lines(self) -> str:
        """A row of the table for each; ratios are our rows a second over the others'."""
        first = self.figures[0].median("rate")
        lines = []
        for i, figure in enumerate(self.figures):
            rate = figure.median("rate")
            mark = "\\*" if figure.is_unsteady() else ""
            failed = sum(x.get("failed", 0) for x in figure.values)
            name = figure.name + (f" ({failed:.0f} failed)" if failed else "")
            ratio = f"{first / rate:.2f}" if i and rate else ""
            cells = [self.what, self.row_format, f"{self.rows}", name, f"{rate:,.0f}{mark}"]
            cells += [f"{figure.median(x):.3f}" for x in ("p50_ms", "p99_ms")]
            lines.append(f"| {' | '.join([*cells, ratio])} |")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """All rounds."""
        figures = {x.name: list(x.values) for x in self.figures}
        unsteady = [x.name for x in self.figures if x.is_unsteady()]
        fields = {"what": self.what, "row_format": self.row_format, "rows": self.rows}
        return fields | {"figures": figures, "unsteady": unsteady}


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure that is aimed at.

    Attributes:
        what: name of the figure.
        found: the figure.
        aim: the aim.
        at_most: whether it is an upper limit.
    """

    what: str
    found: float
    aim: float
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it is reached; NaN isn't."""
        return self.found <= self.aim if self.at_most else self.found >= self.aim

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        reached = "met" if self.is_met else "MISSED"
        return f"{reached:6}  {self.what}: {self.found:.3g}, target {sign} {self.aim:g}"

    def as_json(self) -> dict[str, Any]:
        """All fields, and whether it is met."""
        return dataclasses.asdict(self) | {"is_met": self.is_met}


def machine() -> dict[str, Any]:
    """What the figures depend on, besides the versions of libraries."""
    return {
        "processor": processor.name(),
        "instructions": processor.instruction_sets(),
        "native_kernels": library.version(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


FOOTNOTE = f"\\*: two rounds differ by more than {UNSTEADY:.0%}"

"""What was found of a model: its results by size, the laws through them, tables and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from dlrm_jax.cli.pictures import compact
from experiments.scaling.cell import Measured
from experiments.scaling.power_law import PowerLaw, fit, line
from experiments.scaling.sizes import LADDER, Size

SIZE_HEADER = (
    "model", "axis", "width", "layers", "rows or length", "parameters", "FLOPs a sample",
    "excess of NE",
)  # fmt: skip
LAW_HEADER = (
    "model", "rate", "best NE", "slope", "exponent b", "floor c", "largest misfit",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Finding:
    """The results of a model.

    Attributes:
        model: name of the model.
        learning_rate: rate that was chosen.
        along: sizes along each axis, the smallest first.
        results: results of each size, one for each seed.
    """

    model: str
    learning_rate: float
    along: Mapping[str, Sequence[Size]]
    results: Mapping[Size, Sequence[Measured]]

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(next(iter(self.results.values())))

    def flops(self, axis: str) -> np.ndarray:
        """The operations per sample of each size along an axis, [n]."""
        return np.array([self.results[size][0].flops for size in self.along[axis]])

    def excess(self, axis: str) -> np.ndarray:
        """The excess of the test split of each size and seed, [n, seeds]."""
        return np.array([[x.test for x in self.results[size]] for size in self.along[axis]])

    def law(self) -> PowerLaw | None:
        """The law of the ladder, through the results of all seeds.

        There is none if one of them is as good as the planted cause, which chance may do on a test
        split: the logarithm of its excess isn't a number.
        """
        flops, excess = self.flops(LADDER), self.excess(LADDER)
        if excess.min() <= 0:
            return None
        return fit(np.repeat(flops, excess.shape[1]), excess.ravel())


def size_rows(finding: Finding) -> list[tuple[str, ...]]:
    """A row of the table for each axis and size, below `SIZE_HEADER`."""
    rows = []
    for axis, sizes in finding.along.items():
        for size in sizes:
            found = finding.results[size]
            rows.append(
                (
                    finding.model,
                    axis,
                    str(size.width),
                    str(size.layers),
                    str(size.rows or size.length),
                    compact(found[0].parameters),
                    compact(found[0].flops),
                    _with_deviation([each.test for each in found]),
                )
            )
    return rows


def law_row(finding: Finding) -> tuple[str, ...]:
    """The row of a model's law, below `LAW_HEADER`; in brackets the range over laws of one seed.

    The slope is that of a line through the logarithms, as if the floor were 0.
    """
    flops, excess = finding.flops(LADDER), finding.excess(LADDER)
    whole = finding.law()
    best = f"{finding.results[finding.along[LADDER][0]][0].best:.4f}"
    begin = (finding.model, f"{finding.learning_rate:g}", best)
    if whole is None:
        return (*begin, "none, as an excess isn't above 0", "", "", "")
    laws = [fit(flops, of_seed) for of_seed in excess.T]
    lines = [line(flops, of_seed).exponent for of_seed in excess.T]
    slope = line(np.repeat(flops, excess.shape[1]), excess.ravel()).exponent
    misfit = np.abs(excess.mean(axis=1) / whole(flops) - 1).max()
    return (
        *begin,
        _with_range(slope, lines),
        _with_range(whole.exponent, [each.exponent for each in laws]),
        _with_range(whole.floor, [each.floor for each in laws]),
        f"{misfit:.1%}",
    )


def cells_csv(findings: Sequence[Finding]) -> str:
    """All results as CSV, a line for each size and seed."""
    text = io.StringIO()
    columns = ("model", *(x.name for x in dataclasses.fields(Size)), "learning_rate", "seed")
    names = [x.name for x in dataclasses.fields(Measured)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*columns, *names))
    for each in findings:
        for size, found in each.results.items():
            for seed, result in enumerate(found):
                own = (each.model, *dataclasses.astuple(size), each.learning_rate, seed)
                writer.writerow((*own, *dataclasses.astuple(result)))
    return text.getvalue()


def _with_deviation(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _with_range(value: float, of_seeds: Sequence[float]) -> str:
    return f"{value:.3f} ({min(of_seeds):.3f} to {max(of_seeds):.3f})"

"""Compares models on data of each planted teacher, in one table and one picture.

    python -m experiments.compare.teachers --models=all --workdir=runs/teachers

Each teacher labels the same features: ``pairs`` by products of them, ``additive`` by effects of
single ones, ``sequential`` by what the latest ids of a history say of a candidate. Trials, and what
a comparison leaves, are in a directory of the teacher's name; see `experiments.compare`. If it is
interrupted, run the same command with the same workdir again to resume.
"""

from __future__ import annotations

import dataclasses
import statistics
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.pictures import COLOURS, compact, new_grid, note, save
from dlrm_jax.cli.run import run
from dlrm_jax.cli.shown import metric_name
from dlrm_jax.cli.start import start
from dlrm_jax.data.generated.teacher import TeacherKind
from dlrm_jax.files import write_text
from dlrm_jax.presets import preset
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import check_config
from dlrm_jax.training.config_data import generate_data
from dlrm_jax.training.record import to_json
from experiments.compare.contest import asked, compare, define_comparison_flags, locked_workdir
from experiments.compare.ranks import rank_ranges, shown
from experiments.compare.results_page import (
    Limits,
    draw_limits,
    draw_points,
    flops_of,
    mean_and_deviation,
)
from experiments.compare.tasks import Clicks
from experiments.compare.trials import Result

TEACHERS: tuple[str, ...] = typing.get_args(TeacherKind)

Found = Mapping[str, tuple[Sequence[Result], Limits]]
"""Results and limits by teacher; all have the same contenders in the same order."""

define_comparison_flags(
    "comparison_history", {"teacher": "every teacher has its own comparison"}, "all"
)


def main() -> None:
    """Compares on the data of each teacher, then shows all of them together."""
    mesh = start(FLAGS.mesh)
    contenders, base = asked(preset(FLAGS.preset))
    with locked_workdir("teachers") as directory:
        check_config(base, mesh)
        configs = [dataclasses.replace(base, teacher=teacher) for teacher in TEACHERS]
        # All of them before the first trial: a teacher may not fit the features.
        tasks = [Clicks(generate_data(config)) for config in configs]
        found = {}
        for teacher, config, task in zip(TEACHERS, configs, tasks, strict=True):
            own = directory / teacher
            own.mkdir(exist_ok=True)
            found[teacher] = compare(contenders, config, task, mesh, own)
        show(found, Clicks.ranked_by, directory)


def show(found: Found, metric: str, directory: Path) -> None:
    """Prints the table of all teachers, and writes it with the picture."""
    rows = table(found, metric)
    print(text_table(rows[0], rows[1:], left=(0,)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    text = "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
    write_text(directory / "teachers.md", text)
    save(draw(found, metric), str(directory / "teachers.png"))
    write_text(directory / "results.json", to_json({"directories": list(found)}, indent=1))
    print(f"see {directory}/teachers.md")


def table(found: Found, metric: str) -> list[tuple[str, ...]]:
    """The header and the rows of models, by their mean rank, and of limits.

    The mean is that of the middles of the ranges; a model's cells are the metric and its ranks.
    """
    ranks = _ranks(found, metric)
    first = next(iter(found.values()))[0]
    names = _names(first)
    header = ["model", "parameters", "matrix FLOPs per example"]
    for teacher in found:
        header += [f"{metric_name(metric)}, {teacher}", "rank"]
    rows = [tuple(header)]
    for i in order(found, metric):
        trial = first[i].trials[0]
        row = [names[i], compact(trial["parameters"]), flops_of(first[i])]
        for teacher, (results, _) in found.items():
            row += [mean_and_deviation(results[i].test(metric)), shown(ranks[teacher][i])]
        rows.append(tuple(row))
    for name in dict.fromkeys(name for _, limits in found.values() for name in limits):
        row = [name, "", ""]
        for _, limits in found.values():
            row += [f"{limits[name][metric]:.4f}" if name in limits else "", ""]
        rows.append(tuple(row))
    return rows


def order(found: Found, metric: str) -> list[int]:
    """The contenders by their mean rank, the best first."""
    ranks = _ranks(found, metric)
    count = len(next(iter(ranks.values())))
    return sorted(range(count), key=lambda i: sum(sum(own[i]) for own in ranks.values()))


def _ranks(found: Found, metric: str) -> dict[str, list[tuple[int, int]]]:
    return {
        teacher: rank_ranges([each.test(metric) for each in results])
        for teacher, (results, _) in found.items()
    }


def draw(found: Found, metric: str) -> Figure:
    """Draws the metric of all models for each teacher, in the order of the table."""
    names, places = _names(next(iter(found.values()))[0]), order(found, metric)[::-1]
    figure, grid = new_grid(max(2.4, 0.9 + 0.22 * len(names)), 1, len(found))
    for axes, (teacher, (results, limits)) in zip(grid, found.items(), strict=True):
        values = [results[i].test(metric) for i in places]
        draw_points(axes, values)
        draw_limits(axes, limits, metric)
        shown_names = [names[i] for i in places] if axes is grid[0] else [""] * len(names)
        axes.set_yticks(range(len(names)), shown_names, parse_math=False)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel(f"{teacher}: test {metric_name(metric)}", loc="left")
        # Far outliers would leave no room for the others: they are noted at the edge.
        left = float(np.nanquantile([min(own) for own in values], 0.12)) - 0.004
        axes.set_xlim(left=left)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        for i, own in enumerate(values):
            if (mean := statistics.mean(own)) < left:
                note(axes, f"\u2190 {mean:.3f}", (left, i), (3, 0), color=COLOURS[0], va="center")
    return figure


def _names(results: Sequence[Result]) -> list[str]:
    """Names of the contenders, with options and optimizer where two would have one name."""
    contenders = [each.contender for each in results]
    counts = Counter(each.model for each in contenders)
    return [each.model if counts[each.model] == 1 else str(each) for each in contenders]


if __name__ == "__main__":
    run(main)

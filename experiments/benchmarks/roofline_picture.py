"""Draws steps timed by `experiments.benchmarks.step` under the roofline of their machine.

    python -m experiments.benchmarks.step --preset=kaggle --batch_size=2048 --json > a.json
    python -m experiments.benchmarks.step --preset=profile --batch_size=2048 --json > b.json
    python -m experiments.benchmarks.roofline_picture --results=a.json,b.json --output=roofline.png

To the right of 1, a step at the machine's limit is bound by matrix products, to the left by rows.
The axes are relative to the machine, as rows of another width are read at another speed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from dlrm_jax.cli.flags import FLAGS, require
from dlrm_jax.cli.output_files import check_pictures, check_writable
from dlrm_jax.cli.pictures import COLOURS, INK, PERCENT, legend_beside, new_axes, save
from dlrm_jax.cli.run import run
from dlrm_jax.errors import UserError

flags.DEFINE_list(
    "results", [], "Files that experiments.benchmarks.step --json printed; such as a.json,b.json."
)
flags.DEFINE_string(
    "output", "roofline.png", "File to draw in: .png or .svg; such as roofline.svg."
)


class Point(NamedTuple):
    """A step in the picture.

    Attributes:
        name: name of the step.
        intensity: FLOPs per byte of rows, over the intensity at which both take the machine equally
            long.
        speed: FLOPs a second over those of a large matrix product.
    """

    name: str
    intensity: float
    speed: float

    @property
    def share(self) -> float:
        """The share of the roofline: the speed over the largest at this intensity."""
        return self.speed / min(1.0, self.intensity)


def point(found: Mapping[str, Any]) -> Point:
    """The point of one benchmark's results."""
    products = found["step_gflop"] / found["machine_gflops"]
    rows = found["step_row_mib"] / 2**10 / found["machine_row_gib_per_second"]
    work = found["mode"] if found["mode"] == "infer" else found["optimizer"]
    name = f"{found['preset']}, {found['batch_size']:,}, {work}"
    return Point(name, products / rows, products / (found["median_ms"] / 1e3))


def read(path: Path) -> Point:
    """Reads the point of a file.

    Raises:
        UserError: the file is missing or has other content.
    """
    try:
        return point(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected what experiments.benchmarks.step --json prints, got {error!r}"
        ) from error


def draw(points: Sequence[Point]) -> Figure:
    """Draws the roof and the steps below it, named in a legend with their share of it."""
    figure, axes = new_axes(3.6)
    lowest = min(0.1, *(x.intensity for x in points))
    highest = max(10.0, *(x.intensity for x in points))
    edge = np.array([lowest / 2, 1.0, highest * 2])
    axes.plot(edge, np.minimum(edge, 1), color=INK, linewidth=1.2)
    for i, each in enumerate(points):
        axes.plot(
            each.intensity,
            each.speed,
            linestyle="none",
            marker="osD^v"[i // len(COLOURS) % 5],
            color=COLOURS[i % len(COLOURS)],
            label=f"{each.name}: {each.share:.0%}",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(10 ** math.floor(math.log10(min(0.1, *(x.speed for x in points)))), 1.3)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_minor_formatter(PERCENT)
    axes.set_xlabel("time that its matrix products need at least, over that of its rows")
    axes.set_ylabel("speed, of a large product's")
    legend_beside(axes, title="share of the limit", title_fontsize=9)
    return figure


def main() -> None:
    """Reads files, draws a picture."""
    require("results", "output")
    check_pictures("output")
    check_writable("output")
    save(draw([read(Path(path)) for path in FLAGS.results]), FLAGS.output)


if __name__ == "__main__":
    run(main)

"""Shows the health of the tables of a run: rows of ids, untrained ones, norms, counts and ages.

    python -m dlrm_jax tables --run=runs/log
    python -m dlrm_jax tables --run=runs/stream --json

It reads a checkpoint, table by table, and needs neither the data nor the model. Counts and ages
are those of tables with dynamic ids: how often ids were seen since they have their rows, and how
long ago, in steps or, of a run with ``--id_clock=seconds``, in seconds.

``python -m dlrm_jax prune`` takes away the rows of ids that are hardly ever seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dlrm_jax.cli.flags import FLAGS, mark_required, require
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.inference.runs import find_checkpoint, reading
from dlrm_jax.inference.table_health import QUANTILES, Quantiles, TableHealth, table_health
from dlrm_jax.text_table import text_table
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.record import to_json

flags.DEFINE_string(
    "run",
    None,
    "Workdir of a run, of which the best checkpoint counts, or one of its checkpoints; such as "
    "runs/log.",
)
mark_required("run")
flags.DEFINE_bool("json", False, "Prints all numbers as JSON, with more quantiles.")

_HEADER = (
    "table", "rows", "ids", "untrained", "not finite", "norm", "99 %", "seen", "99 %", "age",
    "99 %", "top 1 %", "top 10 %", "MiB",
)  # fmt: skip


def main() -> None:
    """Prints a line for each table, or JSON."""
    require("run")
    start("1x1", emulate=True)
    checkpoint = find_checkpoint(Path(FLAGS.run))
    metadata = read_metadata(checkpoint)
    with reading(checkpoint):
        found = list(table_health(checkpoint, metadata))
    if FLAGS.json:
        status(to_json(as_json(checkpoint, metadata["step"], found), indent=1))
        return
    status(f"checkpoint {checkpoint}")
    status(text_table(_HEADER, [_line(each) for each in found]))
    status(
        "untrained: rows of ids without optimizer state; norm, seen, age: medians and 99 % "
        "quantiles; top: share of the most frequent ids in all counts"
    )


def as_json(checkpoint: Path, step: int, tables: Sequence[TableHealth]) -> dict[str, Any]:
    """What ``--json`` prints: quantiles by their share.

    Args:
        checkpoint: directory of the checkpoint.
        step: step of the checkpoint.
        tables: health of each table.
    """
    found = []
    for table in tables:
        of_table = dataclasses.asdict(table)
        for name in ("norms", "counts", "ages"):
            values = of_table[name]
            of_table[name] = values and dict(zip(map(str, QUANTILES), values, strict=True))
        found.append(of_table)
    return {"checkpoint": str(checkpoint), "step": step, "tables": found}


def _line(table: TableHealth) -> list[str]:
    def two(values: Quantiles, form: str) -> list[str]:
        return [
            "-" if values is None else format(values[QUANTILES.index(x)], form) for x in (0.5, 0.99)
        ]

    def one(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        table.table,
        f"{table.rows:,}",
        one(table.ids, ","),
        one(table.untrained, ","),
        f"{table.not_finite:,}",
        *two(table.norms, ".3g"),
        *two(table.counts, ",.0f"),
        *two(table.ages, ",.0f"),
        one(table.top_1_percent, ".1%"),
        one(table.top_10_percent, ".1%"),
        f"{table.bytes / 2**20:,.1f}",
    ]

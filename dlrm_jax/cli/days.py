"""Trains day after day, tests each model on the next day, and compares it with the first one.

    python -m dlrm_jax days --input=d0.parquet,d1.parquet --schema=schema.json --workdir=runs/days
    python -m dlrm_jax days --input=log.parquet --schema=schema.json --workdir=runs/days --epochs=2

Each file is a day. A single Parquet file with a timestamp is cut into its dates. For each day but
the last, the command prepares the day with the vocabularies of the days before, continues training
on it (``train --continue_from``), and tests on the next day, which the model hasn't seen. Beside it
stands the model of the first day, which isn't updated any more.

WORKDIR gets days.json, days.html and days.svg. Run the same command again to resume, or with
further days at the end. ``--steps`` and ``--epochs`` are those of each day.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.config_file import check_file_read, config_of_flags, define_config_file
from dlrm_jax.cli.config_flags import check_read, define_run_flags
from dlrm_jax.cli.datasets import OF_GENERATED
from dlrm_jax.cli.days_page import check_replaced, printed, write_page
from dlrm_jax.cli.flags import FLAGS, mark_required, paths, refuse, require
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.daily import JOURNAL, Daily, DayLog, Entry
from dlrm_jax.data.preprocessing.log_by_date import by_date
from dlrm_jax.data.preprocessing.options import Options as Preparation
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.errors import UserError
from dlrm_jax.run_start import check_unvalidated
from dlrm_jax.training.build import check_config
from dlrm_jax.training.measures import check_grouping
from dlrm_jax.training.record import owned

_WITHOUT_VALIDATION = "it needs validation, and a day has none: all of its rows train"

define_run_flags(
    default_preset="small",
    without={
        "plan": "the tables grow from day to day; give --placements",
        "best_metric": _WITHOUT_VALIDATION,
        "target_auc": _WITHOUT_VALIDATION,
        "patience": _WITHOUT_VALIDATION,
        "plateau_factor": _WITHOUT_VALIDATION,
        "plateau_patience": _WITHOUT_VALIDATION,
        "validation_examples": _WITHOUT_VALIDATION,
    },
)
define_config_file()
flags.DEFINE_list(
    "input",
    None,
    "Files, one for each day, in the order of time, as `dlrm_jax preprocess` takes them, or one "
    "Parquet file with a timestamp; such as day_0.parquet,day_1.parquet,day_2.parquet.",
)
flags.DEFINE_string(
    "schema",
    None,
    "JSON file with the meaning of the columns; without it, they are Criteo's; such as "
    "schema.json.",
)
flags.DEFINE_string("workdir", None, "Directory of everything; such as runs/days.")
flags.DEFINE_integer("max_rows", 0, "Most rows of a table; 0 for any; such as 40000000.")
mark_required("input", "workdir")


def main() -> None:
    """Mesh, config, logs by day, then the loop of `dlrm_jax.daily`; the page after each day."""
    require("input", "workdir")
    refuse(OF_GENERATED, "with logs: the data decide")
    config = config_of_flags()
    workdir, given = Path(FLAGS.workdir), paths("input")
    check_replaced(workdir)
    schema = Schema.from_json(Path(FLAGS.schema)) if FLAGS.schema else CRITEO
    # Before a day is prepared, and also where all days are done.
    check_unvalidated(config, new=not (workdir / JOURNAL).exists())
    check_grouping(config, schema.categorical, schema.groups)
    preparation = Preparation(schema, min_count=config.min_count, max_rows=FLAGS.max_rows)
    mesh = start(FLAGS.mesh)
    check_read([config])
    check_file_read([config])
    if mesh.size == 1:
        refuse(["check_copies_every"], "on a mesh of one device, which has no copies")
    config = dataclasses.replace(config, min_count=1)  # of the preparation
    check_config(config, mesh)
    status(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    with owned(workdir, JOURNAL):
        if len(given) == 1:
            given = by_date(given[0], schema, workdir / "logs")
        daily = Daily(named(given), preparation, config, mesh, workdir, status)
        done: list[Entry] = []
        for done in daily():
            if done:
                write_page(done, config, workdir)
    status(printed(done))
    status(f"see {workdir}/days.html, days.svg, days.json; the last model: {daily.last_run}")


def named(files: list[Path]) -> list[DayLog]:
    """The days of files, by the files' names without suffixes.

    Raises:
        UserError: two have the same name.
    """
    names = [path.name.partition(".")[0] for path in files]
    if twice := [name for name in names if names.count(name) > 1]:
        names = [f"{path.parent.name}-{name}" for path, name in zip(files, names, strict=True)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"--input: two days would be called {twice[0]!r}; give the files other names"
            )
    return [DayLog(*pair) for pair in zip(names, files, strict=True)]

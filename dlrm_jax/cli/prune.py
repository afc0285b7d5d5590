"""Takes away the rows of ids that a model can do without, from tables with dynamic ids.

    python -m dlrm_jax prune --run=runs/stream --min_count=3 --max_age=50000
    python -m dlrm_jax prune --run=runs/stream --min_count=3 --output=runs/pruned

Without ``--output``, it prints what would go: ids, bytes, and the share that these ids have in all
counts. With it, a new workdir gets the checkpoint without them; the run stays as it is. Ids that
are left keep their values, optimizer state, counts and times. Train with the same command and
``--workdir=runs/pruned`` to go on; ``--dynamic_ids`` says how many rows the tables get there.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, mark_required, require
from dlrm_jax.cli.output_files import check_new
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.inference.pruned_run import write_pruned_run
from dlrm_jax.inference.pruning import Pruning, Rules, plan_pruning
from dlrm_jax.inference.runs import find_checkpoint, reading
from dlrm_jax.text_table import text_table
from dlrm_jax.training.metadata import read_metadata

flags.DEFINE_string(
    "run",
    None,
    "Workdir of a run, of which the best checkpoint counts, or one of its checkpoints; such as "
    "runs/stream.",
)
mark_required("run")
flags.DEFINE_string(
    "output",
    None,
    "Workdir to make, with the checkpoint without these ids; without it, nothing is written; such "
    "as runs/pruned.",
)
flags.DEFINE_integer(
    "min_count",
    None,
    "Times that an id must have been seen, since it has its row, to keep it; such as 3.",
    2,
)
flags.DEFINE_integer(
    "max_age", None, "Steps for which an id may not have been seen; such as 50000.", 0
)
flags.DEFINE_float(
    "min_norm",
    None,
    "Euclidean norm that the row of an id must have, over all tables that it reads; such as 0.01.",
    0,
)
flags.DEFINE_list(
    "tables", [], "Tables whose ids lose rows, or all with dynamic ids; such as C3,C4."
)

_HEADER = ("table", "rows", "ids", "go", "of counts", "rows left", "MiB", "MiB left")


def main() -> None:
    """Prints what the rules take, and writes what is left."""
    require("run")
    rules = Rules(FLAGS.min_count, FLAGS.max_age, FLAGS.min_norm)
    if rules == Rules():
        raise UserError(
            "--min_count, --max_age and --min_norm are missing: give one that says which ids go; "
            "such as --min_count=3"
        )
    check_new("output")
    start("1x1", emulate=True)
    checkpoint = find_checkpoint(Path(FLAGS.run))
    if FLAGS.output:
        _check_outside(Path(FLAGS.output), checkpoint)
    metadata = read_metadata(checkpoint)
    with reading(checkpoint):
        plans = plan_pruning(checkpoint, metadata, rules, FLAGS.tables)
        status(f"checkpoint {checkpoint}")
        status(text_table(_HEADER, [_line(plan) for plan in plans]))
        if not FLAGS.output:
            status("nothing is written without --output")
            return
        written = write_pruned_run(checkpoint, metadata, plans, Path(FLAGS.output))
    status(f"see {written}; train with --workdir={FLAGS.output} to go on")


def _check_outside(output: Path, checkpoint: Path) -> None:
    """The run stays as it is, so the new workdir may not be in it."""
    is_in_run = checkpoint.parent.name == "checkpoints"
    whole = checkpoint.parent.parent if is_in_run else checkpoint
    if output.resolve().is_relative_to(whole.resolve()):
        raise UserError(
            f"--output: expected a path outside of {whole}, which stays as it is, got {output}; "
            f"give another one, such as runs/pruned"
        )


def _line(plan: Pruning) -> list[str]:
    return [
        plan.name,
        f"{plan.rows:,}",
        f"{plan.ids:,}",
        f"{len(plan.gone):,}",
        f"{plan.counts:.2%}",
        f"{plan.rows_left:,}",
        f"{plan.rows * plan.row_bytes / 2**20:,.1f}",
        f"{plan.rows_left * plan.row_bytes / 2**20:,.1f}",
    ]

"""Describes prepared data before training, or a run after it: one HTML page with pictures.

    python -m dlrm_jax report --data=criteo
    python -m dlrm_jax report --run=runs/kaggle --data=criteo
    python -m dlrm_jax report --run=runs/small

The page of data is ``DATA/report.html``: labels by day, missing and unseen values, how often ids
occur, and the memory of tables.

The page of a run is ``RUN/report.html``, with its numbers in ``RUN/report.json``: learning curves,
calibration, metrics by day and by slice, the importance of each feature, the rows of tables,
settings and versions. It shows the best checkpoint by validation. ``--data`` names what the run was
trained on, unless that was generated; without it, the page says what it leaves out.

``--output`` names another directory for them, such as for a run of another user. A page needs no
other file and no network.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, define_mesh, refuse_unless
from dlrm_jax.errors import UserError

flags.DEFINE_string(
    "data",
    None,
    "Directory that `dlrm_jax preprocess` or TorchRec's scripts made; with --run, also the raw "
    "file of the training; such as criteo.",
)
flags.DEFINE_string("run", None, "Workdir of a run to describe; such as runs/kaggle.")
flags.DEFINE_string(
    "output",
    None,
    "Directory of the page, if another one than the run's, or the data's without --run; such as "
    "reports/kaggle.",
)
define_mesh()
flags.DEFINE_integer("batch_size", 8192, "Rows predicted at a time; such as 65536.", 1)
flags.DEFINE_integer(
    "examples",
    1 << 18,
    "Most rows of a split that are predicted, evenly spaced; such as 1000000.",
    1,
)
flags.DEFINE_integer(
    "permutations",
    3,
    "Times that each feature's values are permuted for its importance; 0 for no importances; such "
    "as 1.",
    0,
)
flags.DEFINE_string(
    "model",
    None,
    "Class of your own that the run names as its model; it is imported only if you name it; such "
    "as my_models:Mine.",
)


def main() -> None:
    """Writes the page."""
    if not FLAGS.data and not FLAGS.run:
        raise UserError("--data is missing: data to describe; or --run: a run to describe")
    of_runs = ("mesh", "emulate", "batch_size", "examples", "permutations", "model")
    refuse_unless(FLAGS.run, "--run", *of_runs)
    data = Path(FLAGS.data) if FLAGS.data else None
    output = Path(FLAGS.output) if FLAGS.output else None
    if not FLAGS.run:
        assert data
        print(f"see {_describe_data(data, output or data)}")
        return
    # Here, since they import JAX.
    from dlrm_jax.cli.run_report import write_run_report
    from dlrm_jax.cli.start import start
    from dlrm_jax.mesh import check_batch_size

    mesh = start(FLAGS.mesh)
    check_batch_size(mesh, "--batch_size", FLAGS.batch_size)
    page = write_run_report(
        Path(FLAGS.run),
        data,
        mesh,
        FLAGS.batch_size,
        FLAGS.model,
        FLAGS.examples,
        FLAGS.permutations,
        output,
    )
    print(f"see {page}, and its numbers in {page.with_suffix('.json')}")


def _describe_data(data: Path, output: Path) -> Path:
    from dlrm_jax.cli.data_report import write_report
    from dlrm_jax.cli.page import check_own

    page = output / "report.html"
    check_own(page)
    write_report(data, page)
    return page

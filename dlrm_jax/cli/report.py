"""Describes preprocessed data before training: one HTML page with pictures.

    python -m dlrm_jax report --data=criteo

It is written to ``DATA/report.html`` and needs no other file and no network. The page shows labels
by day, missing and unseen values, how often ids occur, and the memory of tables.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.data_report import write_report
from dlrm_jax.cli.flags import FLAGS, mark_required, require
from dlrm_jax.cli.page import is_page
from dlrm_jax.errors import UserError

flags.DEFINE_string(
    "data", None, "Directory that `dlrm_jax preprocess` or TorchRec's scripts made; such as criteo."
)
mark_required("data")


def main() -> None:
    """Writes the page."""
    require("data")
    page = Path(FLAGS.data) / "report.html"
    if page.is_file() and not is_page(page):
        raise UserError(f"{page} exists, and this program didn't make it; move it or rename it")
    write_report(Path(FLAGS.data), page)
    print(f"see {page}")

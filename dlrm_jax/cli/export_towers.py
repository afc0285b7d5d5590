"""The part of ``dlrm_jax export`` for runs of two towers."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.cli.flags import FLAGS, refuse
from dlrm_jax.config import Config
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.retrieval.export import export
from dlrm_jax.retrieval.trained_towers import TrainedTowers, labels_of
from dlrm_jax.run_data import load_data
from dlrm_jax.text_table import text_table

FLAGS_OF_TOWERS = ["index", "cells", "probes"]


def define_flags() -> None:
    """Defines the flags that click models don't have."""
    flags.DEFINE_enum(
        "index",
        "flat",
        ["flat", "ivf"],
        "Index of the items of two towers: each query reads all of them, or the nearest cells.",
    )
    flags.DEFINE_integer(
        "cells", 0, "Cells of an ivf index; 0 for twice the root of the items; such as 1024.", 0
    )
    flags.DEFINE_integer("probes", 16, "Cells of an ivf index that a query reads; such as 32.", 1)


def run_name(checkpoint: Path) -> str:
    """The name of the run's directory."""
    return checkpoint.resolve().parent.parent.name


def main(checkpoint: Path, name: str) -> None:
    """Writes the artifact, and prints what it has."""
    refuse(["layers", "max_auc_loss", "model"], "with two towers")
    if FLAGS.index == "flat":
        refuse(["cells", "probes"], "without --index=ivf")
    if not FLAGS.data:
        raise UserError(
            "--data is missing: the items of two towers and their columns are read from the rows "
            "that the run was trained on; give their directory or file, such as --data=log"
        )
    if checkpoint != Path(FLAGS.run):
        status(f"checkpoint {checkpoint}")
    _, data = load_data(Config(labels=labels_of(checkpoint)), Path(FLAGS.data))
    towers = TrainedTowers.read(checkpoint, data)
    items = len(towers.task.items)
    if FLAGS.cells > items:
        raise UserError(f"--cells: expected at most the {items:,} items, got {FLAGS.cells:,}")
    output = Path(FLAGS.output)
    manifest = export(towers, output, name, FLAGS.tables, FLAGS.index, FLAGS.cells, FLAGS.probes)
    show(manifest)
    status(f"artifact {name}: see {output / 'manifest.json'}")


def show(manifest: Manifest) -> None:
    """Prints tables, index and recall."""
    rows = [
        [x.name, f"{x.rows:,}", f"{x.dim}", x.row_format, f"{manifest.files[x.file].bytes:,}"]
        for x in manifest.tables
    ]
    status(text_table(["table of the user", "rows", "dim", "stored as", "bytes"], rows))
    note = manifest.retrieval
    assert note is not None
    names = ", ".join(x.name for x in note.attributes) or "none"
    cells = f" in {note.cells:,} cells, {note.probes} of which a query reads"
    status(
        f"{note.items:,} items{cells if note.cells > 1 else ''}, {note.dim} numbers in int8; "
        f"filters by {names}"
    )
    lines = [
        [f"{split}, {which}", *("-" if x is None else f"{x:.4f}" for x in recalls.values())]
        for split, of_split in manifest.metrics.items()
        for which, recalls in of_split.items()
    ]
    if lines:
        first = next(iter(manifest.metrics.values()))
        status(text_table(["", *first["trained"]], lines))

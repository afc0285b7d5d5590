r"""Makes an artifact: one directory that is a trained model, for serving anywhere.

    python -m dlrm_jax export --run=runs/kaggle --output=kaggle
    python -m dlrm_jax export --run=runs/kaggle --output=kaggle --data=criteo --tables=int8
    python -m dlrm_jax export --run=runs/kaggle --output=kaggle --data=criteo --tables=int4 \
      --layers=int8 --max_auc_loss=0.0005

An artifact has the tables as files that are mapped, the dense model as StableHLO for CPUs, GPUs and
TPUs, the vocabularies, checksums of all files and 100 rows with their predictions. Who loads it
needs neither the model's class nor its settings: give it to ``dlrm_jax predict --checkpoint``, or
to ``Predictor.load``.

``--data`` names what the run was trained on, unless that was generated. The artifact then has the
metrics of validation and test, of the trained model and of the exported one.

    python -m dlrm_jax export --run=runs/retrieval --output=items --data=log --index=ivf

The artifact of a run of two towers has the tower of the user and an index of all items, which
``dlrm_jax.retrieval.retriever.Retriever`` searches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from absl import flags

from dlrm_jax.artifact.dense_note import Precision
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.cli import export_towers
from dlrm_jax.cli.data_of_run import data_of_run
from dlrm_jax.cli.flags import FLAGS, mark_required, refuse, require
from dlrm_jax.cli.output_files import check_new
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.data.arrays import Split
from dlrm_jax.errors import UserError, shortened
from dlrm_jax.retrieval.trained_towers import find_towers
from dlrm_jax.serving.calibration import rows_of_log
from dlrm_jax.serving.export import Exported, export
from dlrm_jax.serving.layer_choice import LayerChoice
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.text_table import text_table
from dlrm_jax.training.rows_by_id import STREAM

flags.DEFINE_string(
    "run",
    None,
    "Workdir of a run, of which the best checkpoint counts, or one of its checkpoints; such as "
    "runs/kaggle.",
)
flags.DEFINE_string("output", None, "Directory to make; such as kaggle.")
flags.DEFINE_enum("tables", "float32", [*get_args(RowFormat)], "How rows of tables are stored.")
flags.DEFINE_enum(
    "layers",
    "float32",
    [*get_args(Precision)],
    "Type in which the MLPs of DLRM compute; int8 is calibrated on --data.",
)
flags.DEFINE_string(
    "data",
    None,
    "Directory or raw file that the run was trained on, for metrics, and for the items of two "
    "towers; of a stream, a raw file for --layers=int8; such as criteo.",
)
flags.DEFINE_float(
    "max_auc_loss",
    None,
    "Most AUC on the validation split that stored rows and short layers may cost; tables that cost "
    "more keep the rows of training, then layers a longer type; without it, all are as asked for; "
    "such as 0.0005.",
    0,
)
flags.DEFINE_string(
    "name",
    None,
    "Name of the model in its manifest and in messages; in paths, 'serve' has one of its own; "
    "without it, that of the run's directory; such as kaggle.",
)
flags.DEFINE_string(
    "model",
    None,
    "Class of your own that the run names as its model; it is imported only if you name it; such "
    "as my_models:Mine.",
)
export_towers.define_flags()
mark_required("run", "output")


def main() -> None:
    """Writes the artifact, and prints what it has."""
    require("run", "output")
    check_new("output")
    start("1x1")
    if checkpoint := find_towers(Path(FLAGS.run)):
        export_towers.main(checkpoint, chosen_name(export_towers.run_name(checkpoint)))
        return
    refuse(export_towers.FLAGS_OF_TOWERS, "with a click model, which has no items")
    model = TrainedModel.read(Path(FLAGS.run), FLAGS.model)
    if model.checkpoint != Path(FLAGS.run):
        status(f"checkpoint {model.checkpoint}")
    of_stream = STREAM in model.metadata
    calibration = calibration_of_stream(model) if of_stream else None
    source = Path(FLAGS.data) if FLAGS.data and not of_stream else None
    data = data_of_run(model.config, model.data, source, model.checkpoint)
    if FLAGS.max_auc_loss is not None and data is None:
        raise UserError("--max_auc_loss: it is measured on validation examples; give --data, too")
    name, output = chosen_name(model.run_name), Path(FLAGS.output)
    done = export(
        model, output, name, FLAGS.tables, data, FLAGS.max_auc_loss, FLAGS.layers, calibration
    )
    show(done)
    if not done.manifest.metrics:
        status(
            "no metrics: a stream has no validation or test; dlrm_jax evaluate measures the model "
            "on a log"
            if of_stream
            else "no metrics: give --data, what the run was trained on"
        )
    status(f"artifact {name}: see {output / 'manifest.json'}")


def calibration_of_stream(model: TrainedModel) -> Split | None:
    """The rows of a log that layers in int8 are calibrated on; None for other layers.

    Raises:
        UserError: there is no log, it can't be read, or the checkpoint has no schema for it.
    """
    none = "which has no validation or test"
    refuse(["max_auc_loss"], f"with a model of a stream, {none}")
    if FLAGS.layers != "int8":
        refuse(["data"], f"with a model of a stream, {none}, unless --layers=int8 is calibrated")
        return None
    schema = model.id_rows.own_schema() if model.id_rows else None
    if schema is None:
        raise UserError(
            f"--layers: int8 is calibrated on rows, and {model.checkpoint} has no schema of its "
            f"stream: run the same train command again, which adds it, or choose bfloat16"
        )
    if not FLAGS.data:
        raise UserError(
            "--layers: int8 is calibrated on rows of the stream; give some as --data, such as one "
            "of its segments, or choose bfloat16"
        )
    return rows_of_log(Path(FLAGS.data), schema)


def chosen_name(name_of_run: str) -> str:
    """The name of the model: that of the flag, or that of the run."""
    name = FLAGS.name or name_of_run
    if not re.fullmatch(r"[\w.-]+", name):  # it will be a part of messages
        raise UserError(
            f"--name: expected letters, digits, dots, dashes and underscores, got "
            f"{shortened(name)!r}; such as --name=kaggle"
        )
    return name


def show(done: Exported) -> None:
    """Prints the tables and the metrics of an artifact."""
    manifest, choice = done.manifest, done.choice
    gains = choice.gains if choice else {}
    header = ["table", "rows", "dim", "stored as", "bytes", *(["costs AUC"] if gains else [])]
    rows = []
    for table in manifest.tables:
        size = manifest.files[table.file].bytes
        cost = [f"{gains[table.name]:.6f}" if table.name in gains else ""] if gains else []
        of_table = [f"{table.rows:,}", f"{table.dim}", table.row_format, f"{size:,}"]
        rows.append([table.name, *of_table, *cost])
    status(text_table(header, rows))
    if choice and (choice.quantized or choice.gains):  # or no table could be stored otherwise
        line = f"validation AUC changes by {0 - choice.loss_of_all:+.6f} with all tables as "
        line += FLAGS.tables
        if kept := len(manifest.tables) - len(choice.quantized):
            line += f", by {0 - choice.loss:+.6f} with {kept} of them as they were trained"
        status(line)
    if done.layers:
        show_layers(done.layers)
    lines = []
    for split, of_split in manifest.metrics.items():
        for which, metrics in of_split.items():
            shown = (metrics["auc"], metrics["log_loss"])
            numbers = ["-" if x is None else f"{x:.6f}" for x in shown]
            lines.append([f"{split}, {which}", *numbers])
    if lines:
        status(text_table(["", "auc", "log_loss"], lines))


def show_layers(choice: LayerChoice) -> None:
    """Prints what layers cost, and which precision they have."""
    for precision, loss in choice.losses.items():
        line = f"validation AUC changes by {0 - loss:+.6f} with these tables and layers in "
        status(f"{line}{precision}")
    if choice.precision != FLAGS.layers:
        status(
            f"the layers are in {choice.precision}: in {FLAGS.layers}, they would cost more than "
            f"--max_auc_loss={FLAGS.max_auc_loss:g}"
        )

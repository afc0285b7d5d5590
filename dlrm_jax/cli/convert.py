"""Converts models from and to PyTorch, and to ONNX.

    python -m dlrm_jax convert --checkpoint=model.pt --output=runs/theirs --data=criteo
    python -m dlrm_jax convert --checkpoint=runs/kaggle --format=torchrec --output=model.safetensors
    python -m dlrm_jax convert --checkpoint=runs/kaggle --format=dlrm --output=model.pt
    python -m dlrm_jax convert --checkpoint=runs/kaggle --format=onnx --output=kaggle-onnx

A file is read as a model of PyTorch: a checkpoint of the DLRM reference (``--save-model``), or a
state dict of TorchRec's DLRM or DLRM_DCN, written by torch.save or as safetensors. Its widths are
those of the model; the output is the workdir of a run that has done no step, which ``predict``,
``export --run``, ``train --warm_start`` and ``train --continue_from`` take.

A directory is a run, one of its checkpoints, or an artifact. It is written for PyTorch, or as ONNX:
a directory with the dense part as a graph and the tables beside it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

from absl import flags

from dlrm_jax.artifact.manifest import Manifest, is_artifact
from dlrm_jax.cli.config_file import check_file_read
from dlrm_jax.cli.datasets import OF_GENERATED
from dlrm_jax.cli.flags import FLAGS, mark_required, refuse, require
from dlrm_jax.cli.output_files import check_new
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.console import status
from dlrm_jax.conversion.exported import Exporter
from dlrm_jax.conversion.foreign_model import ForeignModel
from dlrm_jax.conversion.imported import Importer
from dlrm_jax.conversion.onnx_model import MODEL, onnx_libraries, write_onnx
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.conversion.table_order import feature_names
from dlrm_jax.conversion.tensor_files import check_suffix
from dlrm_jax.conversion.tensor_names import Format
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import numbered
from dlrm_jax.files import scratch_directory
from dlrm_jax.run_data import load_data
from dlrm_jax.saved_config import file_fields
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.text_table import text_table
from dlrm_jax.training.rows_by_id import STREAM

flags.DEFINE_string(
    "checkpoint",
    None,
    "File of PyTorch's model; or a run, one of its checkpoints or an artifact; such as model.pt.",
)
flags.DEFINE_string(
    "output",
    None,
    "Workdir to make of a file; of a run, a file named .pt or .safetensors, or a directory for "
    "ONNX; such as model.safetensors.",
)
flags.DEFINE_enum(
    "format",
    None,
    [*get_args(Format), "onnx"],
    "Format of PyTorch's model, that of the DLRM reference or of TorchRec, or onnx; the names in a "
    "file tell it.",
)
flags.DEFINE_string(
    "data",
    None,
    "Directory that `dlrm_jax preprocess` made, whose ids are the rows of the file's tables, "
    "column by column; such as criteo.",
)
flags.DEFINE_string(
    "config",
    None,
    "JSON file of settings that the file doesn't tell, such as bag_lengths, pooling or optimizer; "
    "such as best.json.",
)
flags.DEFINE_list(
    "table_order",
    None,
    "Tables of the file in the order in which its model reads them, where the file doesn't tell "
    "it; such as t_user,t_item.",
)
mark_required("checkpoint", "output")

_OF_FILES = ("data", "config", "table_order")


def main() -> None:
    """Converts, and prints which table became which."""
    require("checkpoint", "output")
    check_new("output")
    path = Path(FLAGS.checkpoint)
    if not path.exists():
        raise UserError(f"--checkpoint: there is no {path}")
    if not path.is_dir():
        if FLAGS.format == "onnx":
            raise UserError(
                f"--format=onnx: expected a run or an artifact, got the file {path}; convert it "
                f"to a run first"
            )
        import_model(path, Path(FLAGS.output))
        return
    if (path / ".metadata").is_file():
        raise UserError(
            f"--checkpoint: {path} is a distributed checkpoint of PyTorch; gather it first: python "
            f"-m torch.distributed.checkpoint.format_utils dcp_to_torch {path} model.pt"
        )
    refuse(_OF_FILES, f": the model in {path} has its own")
    if FLAGS.format is None:
        raise UserError(f"--format is missing: {', '.join([*get_args(Format), 'onnx'])}")
    if FLAGS.format == "onnx":
        export_onnx(path, Path(FLAGS.output))
    else:
        export_model(path, FLAGS.format, Path(FLAGS.output))


def import_model(path: Path, output: Path) -> None:
    """Makes a run of a file of PyTorch's."""
    fields = file_fields(Path(FLAGS.config)) if FLAGS.config else {}
    model = ForeignModel.open(path, FLAGS.format, FLAGS.table_order or (), fields)
    start("1x1")
    config, data = settings_of(model, fields)
    check_file_read([config])
    importer = Importer(model, config, data)
    rows = []
    for column, place in zip(config.table_names, importer.places, strict=True):
        tensor = model.table(place)
        size, dim = model.shape(tensor)
        rows.append([tensor, column, f"{size:,}", f"{dim}"])
    status(f"{path}: {model.form}, {_all_shown(model.architecture.settings())}")
    status(text_table(["table of the file", "column", "rows", "dim"], rows))
    noted = noted_settings(model)
    found: dict[str, Any] = {"bag_lengths": config.table_bag_lengths, "pooling": config.pooling}
    kept = {x: y for x, y in noted.items() if found.get(x, getattr(config, x)) == y}
    if kept:
        status(f"noted in the file: {_all_shown(kept)}")
    if replaced := {x: y for x, y in noted.items() if x not in kept}:
        status(f"--config replaces what is noted in the file: {_all_shown(replaced)}")
    if data:
        status(f"from the data: {_all_shown({'bag_lengths': found.pop('bag_lengths')})}")
    if others := {x: y for x, y in found.items() if x not in kept}:
        status(f"not from the file: {_all_shown(others)}")
    for remark in importer.remarks():
        status(remark)
    importer.write(output)
    further = "--continue_from or --warm_start" if data else "--warm_start"
    status(f"run {output}: give it to predict --checkpoint, export --run or train {further}")


def noted_settings(model: ForeignModel) -> dict[str, Any]:
    """The settings of a config that a file notes and that no tensor tells.

    Bag lengths are the data's if there are any.
    """
    if model.note is None:
        return {}
    told = model.architecture.settings()
    noted = {x: y for x, y in model.note.settings.items() if x not in told}
    if not FLAGS.data:
        noted["bag_lengths"] = tuple(model.note.bag_lengths[x] for x in model.tables)
    return noted


def settings_of(model: ForeignModel, fields: dict[str, Any]) -> tuple[Config, Dataset | None]:
    """The settings of a file's model, and the data of its ids.

    Args:
        model: model of the file.
        fields: settings of the user, which count more.

    Raises:
        UserError: a setting isn't allowed, or the data can't be read.
    """
    known = model.architecture.settings() | noted_settings(model)
    decided = [name for name in OF_GENERATED if fields.get(name, ()) != ()]
    if FLAGS.data and decided:
        raise UserError(
            f"config file {FLAGS.config}: {decided[0]} has no effect with --data: the data "
            f"decide; take it out of the file"
        )
    if FLAGS.data:
        source = Path(FLAGS.data)
        if not source.is_dir():
            raise UserError(
                f"--data: expected a directory that python -m dlrm_jax preprocess made, got "
                f"{source}"
            )
        return load_data(dataclasses.replace(Config(), **known | fields), source)
    names = feature_names(model.tables)
    is_named = model.form == "torchrec" and tuple(names) != numbered(len(names))
    known["table_rows"] = tuple(model.shape(model.table(i))[0] for i in range(len(names)))
    known["features"] = tuple(names) if is_named else ()
    return dataclasses.replace(Config(), **known | fields), None


def export_model(path: Path, form: Format, output: Path) -> None:
    """Writes a run or an artifact for PyTorch."""
    check_suffix(output)
    start("1x1")
    exporter = Exporter(OwnModel.open(path), form)
    rows = [
        [read.feature, read.table, tensor]
        for read, tensor in zip(exporter.model.reads, exporter.tables, strict=True)
    ]
    status(text_table(["column", "table", "tensor"], rows))
    exporter.write(output)
    for remark in exporter.remarks():
        status(remark)
    status(f"{output}: {form}, {_all_shown(exporter.model.architecture.settings())}")


def export_onnx(path: Path, output: Path) -> None:
    """Writes a run or an artifact as ONNX."""
    onnx_libraries()
    start("1x1")
    if is_artifact(path):
        has_ids = Manifest.read(path).id_rows is not None
        difference = write_onnx(path, output)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        with scratch_directory(output) as scratch:
            model = TrainedModel.read(path, with_keys=False)
            has_ids = STREAM in model.metadata
            export(model, scratch / "artifact", "model", "float32")
            difference = write_onnx(scratch / "artifact", output)
    status(
        f"{output / MODEL}: predictions of onnxruntime differ by at most {difference:.2g} from "
        f"those here"
    )
    if has_ids:
        status(
            "its ids are rows of the tables: what predicts with it maps ids to them first, as "
            "id_rows in the manifest.json of an artifact says"
        )


def _all_shown(settings: dict[str, Any]) -> str:
    lengths = settings.get("bag_lengths", ())  # one of them if all are equal
    shorter = settings | {"bag_lengths": lengths[:1]} if len({*lengths}) == 1 else settings
    return ", ".join(f"{name}={_shown(value)}" for name, value in shorter.items())


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""Predicts with a trained model, and writes its tables for other programs.

    python -m dlrm_jax predict --checkpoint=CHECKPOINT --data=day_24.gz --output=day_24.parquet
    python -m dlrm_jax predict --checkpoint=CHECKPOINT --data=log.csv --output=p.csv --keys=user_id
    python -m dlrm_jax predict --checkpoint=CHECKPOINT --data=prepared --output=p.csv --mesh=2x4
    python -m dlrm_jax predict --checkpoint=CHECKPOINT --tables=user,viewed --tables_output=vectors

where CHECKPOINT is the workdir of a run, such as ``runs/kaggle``, of which the best checkpoint
counts, one of its checkpoints, such as ``runs/kaggle/checkpoints/00300000``, or an artifact that
``dlrm_jax export`` made.

Raw logs are mapped to ids by the vocabularies that the run keeps in its workdir. They are read,
predicted and written chunk by chunk, so that they may be larger than memory. The output has one
line for each row of the data, in their order, with the columns of ``--keys`` and ``probability``,
or of several labels ``probability_LABEL`` for each.
Arrays whose rows a ``--split`` has put in another order are refused; their log isn't.
The label may be missing; where it is there, metrics are printed. Tables have the names of the
data's columns; several columns may share one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
from absl import flags
from jax.sharding import Mesh

from dlrm_jax.cli.flags import FLAGS, mark_required, paths, refuse, refuse_unless, require
from dlrm_jax.cli.model_flags import chosen_model, define_model_flags
from dlrm_jax.cli.output_files import check_new
from dlrm_jax.cli.predicted_labels import PredictedLabels
from dlrm_jax.cli.predicted_metrics import chosen_metrics, with_all_negatives
from dlrm_jax.cli.predicting_model import (
    PredictingModel,
    check_class,
    table_names,
    without_vocabularies,
)
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.id_ranges import Ranges
from dlrm_jax.data.metadata import METADATA, Metadata, check_unchanged
from dlrm_jax.data.preprocessing.headers import check_headers
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating
from dlrm_jax.inference.frame_file import SUFFIXES, unwritable, write_frames
from dlrm_jax.inference.part import Part
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.probabilities import PROBABILITY, probability_columns
from dlrm_jax.inference.table_files import write_table
from dlrm_jax.inference.vocabularies import check_same_data, read_values
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.training.rows_by_id import STREAM

flags.DEFINE_string(
    "checkpoint",
    None,
    "Workdir of a run, of which the best checkpoint counts, one of its checkpoints, or an "
    "artifact; such as runs/x.",
)
flags.DEFINE_list(
    "data",
    [],
    "Raw logs in the order of time, or a directory of arrays; a path with a comma in double "
    "quotes; such as day_24.gz.",
)
flags.DEFINE_string(
    "output", None, "File of probabilities to make: .parquet or .csv; such as p.csv."
)
flags.DEFINE_list(
    "keys",
    [],
    "Columns of the raw logs that the output gets beside the probability; such as "
    "user_id,request_id.",
)
define_model_flags()
flags.DEFINE_list(
    "metrics",
    None,
    "Metrics to print besides the usual ones, as for `dlrm_jax train`; without it, those of "
    "training that import nothing; such as gauc:user.",
)
flags.DEFINE_list("tables", [], "Tables to write, by the names of columns; such as user,viewed.")
flags.DEFINE_enum(
    "tables_format",
    "parquet",
    ["parquet", "npy"],
    "One file a table with values, ids and vectors, or NAME.npy as `dlrm_jax train --warm_start` "
    "reads it.",
)
flags.DEFINE_string("tables_output", None, "Directory of tables to make; such as vectors.")
mark_required("checkpoint")


def main() -> None:
    """Model, probabilities, tables."""
    check_flags()
    model = chosen_model()
    if FLAGS.data:
        check_class(model, FLAGS.model)
    tables = table_names(model, FLAGS.tables)
    if FLAGS.data:
        with creating(Path(FLAGS.output)) as path:
            predicted = predict(model, path)
        # The file is in place: nothing about metrics can lose it.
        if predicted.show() and paths("data")[0].is_dir():
            status("metrics of all days of the directory, those of training included")
    if FLAGS.tables:
        with creating(Path(FLAGS.tables_output)) as directory:
            dump(model, tables, directory)


def check_flags() -> None:
    """Refuses flags that are missing, contradict each other, or that nothing would read."""
    require("checkpoint")
    if not FLAGS.data and not FLAGS.tables:
        raise UserError("--data is missing: what to predict; or --tables: which tables to write")
    for asked, names in (
        ("data", ("output", "keys", "mesh", "emulate", "batch_size", "model", "metrics")),
        ("tables", ("tables_output", "tables_format")),
    ):
        refuse_unless(FLAGS[asked].value, f"--{asked}", *names)
        if FLAGS[asked].value:
            require(names[0])
    check_new("output", "tables_output")
    if FLAGS.output and Path(FLAGS.output).suffix not in SUFFIXES:
        raise UserError(f"--output: expected a name in {' or '.join(SUFFIXES)}, got {FLAGS.output}")
    if any(path.is_dir() for path in paths("data")):
        if len(FLAGS.data) > 1:
            raise UserError(f"--data: expected raw files or one directory, got {FLAGS.data}")
        if not FLAGS.tables:
            refuse(["preprocessing"], "with a directory: it has ids already")
        refuse(["keys"], "with a directory: it has no columns besides ids and dense features")
    for key in FLAGS.keys:
        if FLAGS.keys.count(key) > 1:
            raise UserError(f"--keys: {key!r} is given twice; leave it out")
    check_keys([PROBABILITY])


def check_keys(predicted: Sequence[str]) -> None:
    """Refuses keys that have the name of a column of predictions."""
    for key in FLAGS.keys:
        if key in predicted:
            raise UserError(f"--keys: {key!r} is the name of the predictions; leave it out")


def predict(model: PredictingModel, output: Path) -> PredictedLabels:
    """Writes the probabilities of all rows; prints number and speed, and returns the metrics.

    Raises:
        UserError: the metrics that are asked for can't be had, which is known before rows are read.
    """
    mesh = start(FLAGS.mesh)
    check_batch_size(mesh, "--batch_size", FLAGS.batch_size)
    check_logs(model)
    begun = time.perf_counter()
    parts = predictions(model, mesh)
    chosen = chosen_metrics(model)
    extra = (chosen.metrics, chosen.places)
    predicted = PredictedLabels(model.inputs.labels, extra, model.shift, chosen.left_out)

    def frames() -> Iterator[pl.DataFrame]:
        for part in parts:
            yield pl.DataFrame([*part.keys, *predicted.add(part)])

    write_frames(frames(), output, Path(FLAGS.output).suffix)
    seconds, rows = time.perf_counter() - begun, predicted.rows
    status(f"{rows:,} rows, {seconds:.1f} s ({rows / seconds:,.0f} rows/s); see {FLAGS.output}")
    if model.correction:
        status(model.correction)
    return predicted


def check_logs(model: PredictingModel) -> None:
    """Checks that raw logs can be mapped to ids, and their columns, before anything is read."""
    logs = paths("data")
    if logs[0].is_dir():
        return
    if not model.takes_raw_rows:
        why = without_vocabularies(model)
        raise UserError(f"raw logs can't be mapped to ids: {why}; or give arrays of ids as --data")
    options, _ = model.columns_of_logs
    check_keys(probability_columns(model.inputs.labels))
    types = check_headers(logs, options, FLAGS.keys)
    if key := unwritable(types, Path(FLAGS.output).suffix):
        raise UserError(
            f"--keys: CSV has no {types[key]}, the type of column {key}; give an --output named "
            f".parquet, or leave the column out"
        )


def predictions(model: PredictingModel, mesh: Mesh) -> Iterator[Part]:
    """The predictions of ``--data``, chunk by chunk."""
    inputs, name, logs = model.inputs, ",".join(FLAGS.data), paths("data")
    load = functools.partial(Predictor.load, model.path, mesh)
    if logs[0].is_dir():
        split, ranges, labels = all_days(logs[0], model)
        check_ids(split, inputs.table_rows, inputs.bag_lengths, name, ranges, inputs.columns)
        yield from load(FLAGS.batch_size, FLAGS.model).of_split(split, labels)
        return
    predictor = load(FLAGS.batch_size, FLAGS.model, model.vocabularies)
    unseen = predictor.encoder.unseen_values()
    yield from predictor.of_files(logs, FLAGS.keys, unseen)
    for warning in unseen.warnings():
        status(f"warning: {warning}")


def all_days(
    directory: Path, model: PredictingModel
) -> tuple[Split, Ranges | None, tuple[str, ...]]:
    """All rows of prepared arrays like the model's, or of TorchRec's, in the order of time.

    With the ranges of their ids, if they are those of the model's features, and the names of their
    labels.

    Raises:
        UserError: the arrays are of other data, or in another order than their log.
    """
    described = None
    if (directory / METADATA).exists():
        described = check_same_data(directory, model.path, model.fingerprint)
        rule = Options.from_json(described.made_from["options"]).rule
        if rule.by_row:
            raise UserError(
                f"--data: expected rows in the order of the log, but {directory} has those of each "
                f"day by split, as --split={rule} was given; give the raw log, and --keys for its "
                f"columns beside the probabilities"
            )
    data = load_directory(directory)  # raises if something is missing
    # TorchRec's last day is validation and test, all others are training.
    days = len(described.days) if described else len(data.train.days) + 1
    groups = described.groups if described else ()
    mapped = [DayFiles.map(directory, number, groups).examples for number in range(days)]
    split = Split(tuple(mapped))
    if described:
        check_unchanged(directory, model.fingerprint)
        split = with_all_negatives(split, described)
    same = data.bag_lengths == model.inputs.bag_lengths
    return split, data.id_ranges if same else None, data.labels


def dump(model: PredictingModel, names: Sequence[str], output: Path) -> None:
    """Writes tables one after the other, and prints their files."""
    assert model.trained
    (metadata, config), vocabularies = model.trained, model.vocabularies
    places = config.table_names  # where the columns of the data are
    if vocabularies and "retrieval" in metadata["identity"]:  # it reads some, in another order
        places = Metadata.read(vocabularies).columns
    output.mkdir()
    for name in names:
        table = config.table_names.index(name)
        values = read_values(vocabularies, places.index(name)) if vocabularies else None
        written = write_table(model.path, metadata, name, values, output, FLAGS.tables_format)
        files = ", ".join(str(Path(FLAGS.tables_output) / path.name) for path in written)
        others = [x for x, owner in config.table_of.items() if owner == name != x]
        shared = f" (also of {', '.join(others)})" if others else ""
        status(f"table {name}{shared}, {config.table_rows[table]:,} rows: {files}")
    if vocabularies:
        check_unchanged(vocabularies, model.fingerprint)
    elif STREAM in metadata:
        status(
            "the values of the rows aren't known: ids of a stream are hashed to rows, and several "
            "may share one"
        )
    else:
        status(
            "the run keeps no vocabularies: the values of the rows are unknown; give the directory "
            "of the training data as --preprocessing"
        )

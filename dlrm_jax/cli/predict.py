"""Predicts with a trained model, and writes its tables for other programs.

    python -m dlrm_jax predict --checkpoint=CHECKPOINT --data=day_24.gz --output=day_24.parquet
    python -m dlrm_jax predict --checkpoint=CHECKPOINT --data=prepared --output=p.csv --mesh=2x4
    python -m dlrm_jax predict --checkpoint=CHECKPOINT --tables=C1,viewed --tables_output=vectors

where CHECKPOINT is a directory such as ``runs/kaggle/checkpoints/00300000``.

Raw logs, whose label may be missing, are mapped to ids by the vocabularies that the run keeps in
its workdir. The output has one line for each row of the data, in their order, with the column
``probability``. Tables are named as in the model or as the columns of the data.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from absl import flags

from dlrm_jax.cli.program import FLAGS, define_mesh_flags, run, start
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.directory import METADATA, Metadata, load_directory
from dlrm_jax.data.preprocessing.serving import encode_logs
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating
from dlrm_jax.inference.frame_file import SUFFIXES, write_frames
from dlrm_jax.inference.predictor import Predictor, trained_config
from dlrm_jax.inference.table_files import write_table
from dlrm_jax.inference.vocabularies import check_same_data, find_kept, read_values
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.training.serialization import read_metadata

flags.DEFINE_string("checkpoint", None, "a directory named by its step, in a run's checkpoints/")
flags.DEFINE_list("data", [], "raw logs in the order of time, or a directory of prepared arrays")
flags.DEFINE_string("output", None, "the file of probabilities to make: .parquet or .csv")
define_mesh_flags()
flags.DEFINE_integer("batch_size", 8192, "rows predicted at a time", lower_bound=1)
flags.DEFINE_string("preprocessing", None, "the directory of prepared data whose vocabularies the "
                    "model was trained with; by default, what the run keeps")  # fmt: skip
flags.DEFINE_list("tables", [], "tables to write, such as C1, or the columns that they are of")
flags.DEFINE_enum("tables_format", "parquet", ["parquet", "npy"], "values, ids and vectors in one "
                  "file a table, or NAME.npy as --warm_start of the main job reads it")  # fmt: skip
flags.DEFINE_string("tables_output", None, "the directory of tables to make")

_ROWS_PER_FRAME = 1 << 22


def main(argv: Sequence[str]) -> None:
    """Checkpoint, probabilities, tables."""
    del argv
    check_flags()
    checkpoint = Path(FLAGS.checkpoint)
    metadata = read_metadata(checkpoint)
    config = trained_config(checkpoint, metadata)
    vocabularies = find_vocabularies(checkpoint, metadata)
    tables = table_names(config, vocabularies)
    if FLAGS.data:
        with creating(Path(FLAGS.output)) as path:
            predict(checkpoint, metadata, vocabularies, path)
    if FLAGS.tables:
        with creating(Path(FLAGS.tables_output)) as directory:
            dump(checkpoint, metadata, tables, vocabularies, directory)


def check_flags() -> None:
    """Flags that are missing, contradict each other or would be read by nothing.

    Raises:
        UserError: naming the flag.
    """
    if not FLAGS.checkpoint:
        raise UserError("--checkpoint is missing: a directory such as runs/x/checkpoints/00001000")
    if not FLAGS.data and not FLAGS.tables:
        raise UserError("--data is missing: what to predict; or --tables: which tables to write")
    for flag, needed in (
        ("output", "data"),
        ("mesh", "data"),
        ("emulate", "data"),
        ("batch_size", "data"),
        ("tables_output", "tables"),
        ("tables_format", "tables"),
    ):
        if FLAGS[flag].present and not FLAGS[needed].value:
            raise UserError(f"--{flag} has no effect without --{needed}")
    for flag, output in (("data", "output"), ("tables", "tables_output")):
        if FLAGS[flag].value and not FLAGS[output].value:
            raise UserError(f"--{output} is missing: where to write what --{flag} asks for")
        path = FLAGS[output].value
        if path and Path(path).exists():
            raise UserError(f"--{output}: {path} exists; remove it, or give another name")
    if FLAGS.output and Path(FLAGS.output).suffix not in SUFFIXES:
        raise UserError(f"--output: expected a name in {' or '.join(SUFFIXES)}, got {FLAGS.output}")
    for path in FLAGS.data:
        if not Path(path).exists():
            raise UserError(f"--data: there is no {path}")
    if any(Path(path).is_dir() for path in FLAGS.data):
        if len(FLAGS.data) > 1:
            raise UserError(f"--data: expected raw files or one directory, got {FLAGS.data}")
        if FLAGS.preprocessing and not FLAGS.tables:
            raise UserError("--preprocessing has no effect with a directory: it has ids already")


def find_vocabularies(checkpoint: Path, metadata: Mapping[str, Any]) -> Path | None:
    """Where the vocabularies of a checkpoint lie; None if there are none.

    Raises:
        UserError: those that there are belong to other data.
    """
    directory = Path(FLAGS.preprocessing) if FLAGS.preprocessing else find_kept(checkpoint)
    if directory:
        check_same_data(directory, checkpoint, metadata["identity"]["data"])
    return directory


def table_names(config: Config, vocabularies: Path | None) -> list[str]:
    """The names in the model of the tables that ``--tables`` asks for.

    Raises:
        UserError: a name is unknown, could mean two tables, or one table is named twice.
    """
    columns = Metadata.read(vocabularies).columns if vocabularies else config.table_names
    found = []
    for name in FLAGS.tables:
        named = zip(config.table_names, columns, strict=True)
        meant = [table for table, column in named if name in (table, column)]
        if len(meant) != 1:
            known = ", ".join(dict.fromkeys([*config.table_names, *columns]))
            both = f"{name!r} could be {' or '.join(meant)}: one's own name, the other's column"
            none = f"no table or column is named {name!r}; there are {known}"
            raise UserError(f"--tables: {both if meant else none}")
        if meant[0] in found:
            raise UserError(f"--tables: {name!r} is table {meant[0]}, which is named twice")
        found += meant
    return found


def predict(
    checkpoint: Path, metadata: Mapping[str, Any], vocabularies: Path | None, output: Path
) -> None:
    """Writes the probabilities of all rows, and says how many and how fast."""
    mesh = start(FLAGS.mesh)
    check_batch_size(mesh, "--batch_size", FLAGS.batch_size)
    begun = time.perf_counter()
    with examples(checkpoint, metadata, vocabularies) as split:
        model = Predictor.load(checkpoint, mesh, FLAGS.batch_size)
        check_ids(
            split, model.config.table_rows, model.config.table_bag_lengths, ",".join(FLAGS.data)
        )
        write_frames(frames(model.probabilities(split)), output, Path(FLAGS.output).suffix)
        rows = len(split)
    seconds = time.perf_counter() - begun
    print(f"{rows:,} rows, {seconds:.1f} s ({rows / seconds:,.0f} rows/s); see {FLAGS.output}")


@contextmanager
def examples(
    checkpoint: Path, metadata: Mapping[str, Any], vocabularies: Path | None
) -> Iterator[Split]:
    """What ``--data`` names, as arrays; those of raw logs are gone after the block.

    Raises:
        UserError: the ids don't mean what they meant in training, or raw values can't be mapped.
    """
    paths = [Path(path) for path in FLAGS.data]
    if paths[0].is_dir():
        yield all_days(paths[0], checkpoint, metadata["identity"]["data"])
        return
    if not vocabularies:
        raise UserError(
            f"{checkpoint} was trained on data without vocabularies, or its workdir isn't around "
            f"it any more: raw logs can't be mapped to ids. Give the directory of prepared data "
            f"that has them as --preprocessing, or arrays as --data"
        )
    output = Path(FLAGS.output)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as directory:
        yield Split(tuple(encode_logs(paths, vocabularies, Path(directory) / "arrays")))


def all_days(directory: Path, checkpoint: Path, fingerprint: str) -> Split:
    """All rows of prepared arrays, in the order of time.

    Raises:
        UserError: they are of other data than that of this fingerprint. TorchRec's arrays don't
            say what they are of.
    """
    if (directory / METADATA).exists():
        check_same_data(directory, checkpoint, fingerprint)
    load_directory(directory)  # complains of what isn't complete
    days = len(list(directory.glob("day_*_dense.npy")))
    return Split(tuple(DayFiles.map(directory, number).examples for number in range(days)))


def frames(batches: Iterator[np.ndarray]) -> Iterator[pl.DataFrame]:
    """Batches of probabilities as frames that are large enough for a file."""
    pending, rows = [np.zeros(0)], 0
    for batch in batches:
        pending.append(batch)
        rows += len(batch)
        if rows >= _ROWS_PER_FRAME:
            yield pl.DataFrame({"probability": np.concatenate(pending)})
            pending, rows = [np.zeros(0)], 0
    yield pl.DataFrame({"probability": np.concatenate(pending)})


def dump(
    checkpoint: Path,
    metadata: Mapping[str, Any],
    names: Sequence[str],
    vocabularies: Path | None,
    output: Path,
) -> None:
    """Writes tables one after the other, and says what there is."""
    output.mkdir()
    config = trained_config(checkpoint, metadata)
    for name in names:
        table = config.table_names.index(name)
        values = read_values(vocabularies, table) if vocabularies else None
        paths = write_table(checkpoint, metadata, name, values, output, FLAGS.tables_format)
        files = ", ".join(str(Path(FLAGS.tables_output) / path.name) for path in paths)
        print(f"table {name}, {config.table_rows[table]:,} rows: {files}")
    if not vocabularies:
        print("the run keeps no vocabularies: which value a row is of isn't known")


if __name__ == "__main__":
    run(main)

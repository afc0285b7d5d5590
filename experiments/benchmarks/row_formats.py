"""The test AUC that exported tables keep, by row format.

    python -m experiments.benchmarks.row_formats
    python -m experiments.benchmarks.row_formats --jobs=main --data=train.txt --preset=kaggle

Each job is trained once, and its best checkpoint is exported in each row format, as ``python -m
dlrm_jax export --data`` does. Metrics are those of the manifests, on the whole test split. The
share is that of the AUC with float32, as MLPerf takes it, which asks for 99.9 % of int8. The jobs:

- ``main``: generated ids, the job of ``python -m experiments.criteo``.
- ``criteo``: a log in Criteo's text format, of Kaggle's tables, through preprocessing: ids are of
  vocabularies, and most values come a few times.
- ``clicks``: a log of users, items and the items that a user clicked on before, split by time.

The last two are those of ``python -m dlrm_jax generate``. ``--data`` adds a job on a log or on
prepared arrays of your own.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from absl import flags

import dlrm_jax
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.data.generated.click_log import SCHEMA, ClickLog
from dlrm_jax.data.generated.example_files import write_raw
from dlrm_jax.data.generated.example_stream import CHUNK, ExampleStream
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.presets import PRESETS, preset
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel

_FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
_DAYS = 7

flags.DEFINE_list("jobs", ["main", "criteo", "clicks"], "Jobs to train; such as main,criteo.")
flags.DEFINE_integer("examples", 2_400_000, "Examples of each job, about; such as 100000.", 1000)
flags.DEFINE_string("data", None, "Log or directory of a further job; such as train.txt.")
flags.DEFINE_enum("preset", "small", list(PRESETS), "Preset of the job of --data.")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        config: config of the run.
        data: function that gives the data, for a directory where it may write; None are generated.
    """

    config: Config
    data: Callable[[Path], Path | None]


def criteo_log(directory: Path) -> Path:
    """A log in Criteo's text format, prepared."""
    kaggle = preset("kaggle")
    stream = ExampleStream(kaggle.table_rows, kaggle.zipf_exponent, kaggle.seed)
    chunks = itertools.islice(stream.day(0), -(-FLAGS.examples // CHUNK))
    write_raw(directory / "train.txt", chunks)
    return prepared(directory, [directory / "train.txt"], Options())


def click_log(directory: Path) -> Path:
    """A prepared click log; its last two days are validation and test."""
    examples = FLAGS.examples // _DAYS
    users, items = max(10, examples // 15), max(10, examples // 150)
    paths = []
    for day in ClickLog(users, items, 0.01, _DAYS, 0).each_day(examples):
        paths.append(directory / f"day_{len(paths)}.parquet")
        day.frame.write_parquet(paths[-1])
    options = Options(Schema.from_fields(SCHEMA), split="time:1d,1d")
    return prepared(directory, paths, options)


def prepared(directory: Path, logs: list[Path], options: Options) -> Path:
    """The arrays of logs."""
    preprocess(logs, directory / "arrays", options)
    return directory / "arrays"


def jobs() -> dict[str, Job]:
    """The jobs that the flags ask for, by name.

    Raises:
        UserError: one isn't known.
    """
    small = dataclasses.replace(preset("small"), examples=FLAGS.examples)
    known = {
        "main": Job(small, lambda _: None),
        "criteo": Job(small, criteo_log),
        "clicks": Job(small, click_log),
    }
    if unknown := [name for name in FLAGS.jobs if name not in known]:
        raise UserError(f"--jobs: expected some of {', '.join(known)}, got {unknown[0]!r}")
    chosen = {name: known[name] for name in FLAGS.jobs}
    if FLAGS.data:
        chosen[Path(FLAGS.data).name] = Job(preset(FLAGS.preset), lambda _: Path(FLAGS.data))
    return chosen


def lines_of(name: str, job: Job, directory: Path) -> Iterator[str]:
    """Trains a job; a row of the Markdown table for each row format."""
    fitted = dlrm_jax.fit(job.config, job.data(directory), workdir=directory / "run")
    model = TrainedModel.read(directory / "run")
    reference = 0.0
    for row_format in _FORMATS:
        done = export(model, directory / row_format, name, row_format, fitted.data)
        tables, files = done.manifest.tables, done.manifest.files
        found = done.manifest.metrics["test"]["exported"]
        auc, loss = found["auc"] or 0.0, found["log_loss"] or 0.0
        reference = reference or auc
        cells = [
            name,
            row_format,
            f"{sum(files[x.file].bytes for x in tables) / 2**20:.2f}",
            f"{loss:.5f}",
            f"{auc:.5f}",
            f"{100 * auc / reference:.3f} %",
        ]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Trains and exports each job, and prints its rows of the table."""
    chosen = jobs()
    start("1x1")
    print("| job | row format | tables, MiB | log loss | AUC | share of float32's AUC |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, job in chosen.items():
        with tempfile.TemporaryDirectory() as temporary:
            for line in lines_of(name, job, Path(temporary)):
                print(line, flush=True)


if __name__ == "__main__":
    run(main)

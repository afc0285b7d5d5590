"""Times predictions of an artifact, in process and over HTTP, against FBGEMM's.

    python -m experiments.benchmarks.serving                                       # a quick look
    python -m experiments.benchmarks.serving --rows=33800000 --output=serving.json

The artifact has a preset's shape and drawn numbers; it is made once and kept in the cache.
Both programs load its rows, and must give its golden predictions to 1e-5 before they are timed, to
0.02 of short layers. PyTorch's layers are in the precision that ``--layers`` names, too: cast to
bfloat16, or quantized by the artifact's scales.

In process, `Predictor.predict` on arrays, with all its checks, is timed in turn with FBGEMM's
operator for inference and PyTorch's dense layers: eager, compiled or through oneDNN, whichever is
the fastest for the batch size. Batches follow one another, or MLPerf's LoadGen asks for samples:
*Offline* for all at once, *Server* at the times of a Poisson process. Those that wait are a batch.

Over HTTP, ``dlrm_jax serve`` is timed in turn with a minimal FastAPI server around that operator:
one connection that waits for its answers, 32 of them, and LoadGen over 64 connections. *half* is
the Server scenario at half of each one's Offline rate. *peak* is its highest rate with a p99 of
10 ms. Bodies are JSON, ours also the protocol's binary form. One thread of Python makes all
requests, on the same processors as the server, and both may use each of them. ``client_cpu`` in
the output is the share of one processor that the clients take.

A server that isn't measured is stopped. A star marks figures of which two rounds differ by more
than 10 %. Other programs disturb PyTorch's threads more than ours: only figures of a quiet machine
compare the two.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np
from absl import flags

from dlrm_jax.artifact.dense_note import Precision
from dlrm_jax.artifact.row_formats import RowFormat, as_row_format
from dlrm_jax.cli.flags import FLAGS, define_numbers
from dlrm_jax.cli.output_files import check_writable
from dlrm_jax.cli.run import run
from dlrm_jax.config import Config
from dlrm_jax.files import cache_directory, write_json
from dlrm_jax.presets import preset
from experiments.benchmarks.drawn_ids import draw_ids
from experiments.benchmarks.peers import environment
from experiments.benchmarks.serving import measures, report
from experiments.benchmarks.serving.drawn_model import artifacts
from experiments.benchmarks.serving.in_process import Rows

flags.DEFINE_string("preset", "kaggle", "Preset with the shape of the model, a DLRM.")
flags.DEFINE_integer("rows", 100_000, "Most rows of a table; such as 33800000 for all.", 1)
flags.DEFINE_list(
    "formats", ["int8", "float32"], f"Row formats of {', '.join(get_args(RowFormat))}."
)
flags.DEFINE_enum(
    "layers", "float32", [*get_args(Precision)], "Precision of the dense layers of both programs."
)
define_numbers(
    "batch_sizes", (1, 8, 64, 512, 2048, 8192), "Rows of a batch in process; such as 1,8.", low=1
)
define_numbers("request_rows", (1, 64), "Rows of a request or sample; such as 1,500.", low=1)
flags.DEFINE_list("only", ["process", "http"], "What is measured; such as http.")
flags.DEFINE_list("http_formats", ["int8"], "Row formats over HTTP; such as int8,float32.")
flags.DEFINE_enum("ids", "zipf", ["zipf", "uniform"], "Distribution of the ids of a table.")
flags.DEFINE_enum(
    "part",
    "fastest",
    ["fastest", "eager", "compiled", "onednn"],
    "Form of PyTorch's dense layers; fastest is the fastest for each batch size.",
)
flags.DEFINE_integer("rounds", 3, "Rounds in which all are timed; such as 5.", 1)
flags.DEFINE_float("seconds", 1, "Seconds of each timing; such as 3.", 0.01)
flags.DEFINE_bool("fresh", False, "Makes the artifact again.")
flags.DEFINE_string("output", None, "File to make for all figures, as JSON.")
flags.DEFINE_string("environment", None, "Directory for PyTorch; without it, one in the cache.")

_ROWS = 32768


def main() -> None:
    """Measures, and prints a row of the table for each figure, and the targets at the end."""
    check_writable("output")
    config = preset(FLAGS.preset)
    rows = tuple(min(x, FLAGS.rows) for x in config.table_rows)
    config = dataclasses.replace(config, table_rows=rows)
    formats: list[RowFormat] = [as_row_format(x) for x in FLAGS.formats]
    http_formats = [x for x in formats if x in FLAGS.http_formats] if "http" in FLAGS.only else []
    name = f"{FLAGS.preset}-{max(rows)}"
    cache = cache_directory() / "serving"
    found = artifacts(config, name, formats, cache, FLAGS.fresh, FLAGS.layers)
    directory = Path(FLAGS.environment) if FLAGS.environment else cache_directory() / "peers"
    python = environment.ready(directory)
    settings = measures.Settings(
        python, FLAGS.part, FLAGS.batch_sizes, FLAGS.request_rows, FLAGS.rounds, FLAGS.seconds
    )
    machine = report.machine()
    shape = f"{sum(rows):,} rows of {config.embedding_dim} numbers"
    print(f"{shape}, layers in {FLAGS.layers}, ids {FLAGS.ids}; {machine}")
    results = measures.Results()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        drawn = draw_rows(config, scratch)
        print(f"\n{report.HEADER}", flush=True)
        for each in formats:
            if "process" in FLAGS.only:
                measures.in_process(found[each], each, drawn, settings, scratch, results)
            if each in http_formats:
                measures.over_http(found[each], each, settings, scratch, results)
    print(f"\n{report.FOOTNOTE}\nversions: {results.versions}")
    print("", *results.notes, "", *results.targets, sep="\n")
    print(f"load average {machine['load']:.1f} before, {os.getloadavg()[0]:.1f} after")
    if FLAGS.output:
        write_json(
            Path(FLAGS.output), {"machine": machine, "table_rows": rows, **results.as_json()}
        )


def draw_rows(config: Config, directory: Path) -> Rows:
    """Files of the rows that are predicted in process."""
    rng = np.random.default_rng(config.seed)
    dense = rng.standard_normal((_ROWS, config.dense_features), np.float32)
    exponent = 0.0 if FLAGS.ids == "uniform" else config.zipf_exponent or 1.05
    rows = Rows(directory / "dense.npy", directory / "ids.npy")
    np.save(rows.dense, dense)
    np.save(rows.ids, draw_ids(config.table_rows, _ROWS, exponent, config.seed))
    return rows


if __name__ == "__main__":
    run(main)

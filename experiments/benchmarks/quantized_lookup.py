"""Times the lookups of exported tables, by row format, against FBGEMM's operator for inference.

    python -m experiments.benchmarks.quantized_lookup --preset=kaggle

The tables are a preset's, with numbers drawn at random and stored as files, which are mapped. A
batch has one id for each table. ``limit`` is the least time: the cache lines of the batch's
distinct rows, at the speed of random reads of whole lines (see `experiments.benchmarks.roofline`).
Batches of Zipf's law read hot rows from caches, so that they can be faster.

FBGEMM runs in its own process and environment (see `experiments.benchmarks.peers`), with its tables
in memory, its indices and offsets made beforehand, and without checks of the indices. Ours checks
them, and takes them as preprocessing gives them. The vectors of the first batch must agree. The two
are timed in turn, round by round; figures are medians, the ratio is that of rows per second. With
``--threads=1``, times are those of the processor, which other programs disturb less.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from absl import flags

from dlrm_jax.artifact.row_formats import RowFormat, as_row_format, encode
from dlrm_jax.artifact.row_pooling import RowPooling, StoredLookup
from dlrm_jax.artifact.stored_tables import StoredTable, map_table
from dlrm_jax.cli.flags import FLAGS, define_numbers
from dlrm_jax.cli.run import run
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory
from dlrm_jax.native import library
from dlrm_jax.presets import preset
from experiments.benchmarks import roofline
from experiments.benchmarks.drawn_ids import draw_ids
from experiments.benchmarks.peers import environment
from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.timing import calls_per_second, ratio_quartiles

flags.DEFINE_string("preset", "kaggle", "Preset with the tables; such as kaggle.")
flags.DEFINE_integer("rows", 0, "Most rows of a table; 0 for all; such as 100000.", 0)
flags.DEFINE_list("formats", ["float32", "int8", "int4"], "Row formats; such as int8,bfloat16.")
define_numbers(
    "batch_sizes", (1, 8, 64, 512, 2048, 8192), "Samples of a call; such as 1,8192.", low=1
)
flags.DEFINE_enum("ids", "zipf", ["zipf", "uniform"], "Distribution of the ids of a table.")
flags.DEFINE_integer("rounds", 9, "Rounds in which both are timed; such as 20.", 1)
flags.DEFINE_float("seconds", 0.2, "Seconds of each timing; such as 1.", 0.01)
flags.DEFINE_integer("threads", 0, "Threads of both; 0 for all processors; such as 1.", 0)
flags.DEFINE_bool("fbgemm", True, "Also times FBGEMM; its packages are installed on first use.")
flags.DEFINE_string("environment", None, "Directory for PyTorch; without it, one in the cache.")

_SAMPLES = 65536
_MOST_BATCHES = 4096  # enough that the caches don't contain the rows of the next one
_CHUNK = 2**20
_LINE = 64
_PEER_FORMATS = ("float32", "int8", "int4")


def draw_tables(config: Config, row_format: RowFormat, directory: Path) -> list[StoredTable]:
    """Writes and maps the tables; the chunks of one repeat themselves, as drawing takes long."""
    rng = np.random.default_rng(config.seed)
    numbers = rng.normal(0, 0.1, (min(_CHUNK, max(config.table_rows)), config.embedding_dim))
    chunk = encode(numbers.astype(np.float32), row_format)
    tables = []
    for i, rows in enumerate(config.table_rows):
        path = directory / f"{i}.rows"
        with path.open("wb") as file:
            for start in range(0, rows, _CHUNK):
                file.write(chunk[: rows - start].tobytes())
        tables.append(map_table(path, str(i), rows, row_format, config.embedding_dim))
    return tables


def least_seconds(ids: np.ndarray, tables: Sequence[StoredTable], lines: float) -> float:
    """The least seconds of a batch: its distinct cache lines, at ``lines`` a second."""
    count = 0
    for rows, table in zip(ids.T, tables, strict=True):
        width = table.rows.shape[1]
        first = np.unique(rows).astype(np.int64) * width
        spans = (first + width - 1) // _LINE - first // _LINE
        count += sum(
            len(np.unique((first // _LINE + k)[spans >= k])) for k in range(spans.max() + 1)
        )
    return count / lines


class Ours:
    """Our lookups of the batches."""

    def __init__(self, tables: Sequence[StoredTable], ids: np.ndarray):
        lookups = [StoredLookup(x.name, x, (i, i + 1)) for i, x in enumerate(tables)]
        self._pool = RowPooling(lookups, FLAGS.threads or None)
        self._ids = ids

    def vectors(self, size: int) -> np.ndarray:
        """The vectors of the first batch."""
        return self._pool(self._ids[:size])

    def calls_per_second(self, size: int, batches: int) -> float:
        """See `timing.calls_per_second`."""
        ids = [self._ids[i * size : (i + 1) * size] for i in range(batches)]
        calls = [functools.partial(self._pool, x) for x in ids]
        return calls_per_second(calls, FLAGS.seconds, FLAGS.threads == 1)


def check(ours: Ours, peer: Contestant, size: int, directory: Path) -> None:
    """Checks that a peer has computed our vectors."""
    path = directory / "vectors.npy"
    peer.ask("check", size=size, output=str(path))
    distance = np.abs(ours.vectors(size) - np.load(path)).max()
    if not distance < 1e-5:
        raise UserError(f"FBGEMM computes something else: its vectors are off by {distance:g}")


def lines_of(
    row_format: RowFormat, config: Config, ids: np.ndarray, peer: Contestant | None, lines: float
) -> Iterator[str]:
    """A row of the Markdown table for each batch size."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        tables = draw_tables(config, row_format, directory)
        ours = Ours(tables, ids)
        if peer is not None:
            np.save(directory / "ids.npy", ids)
            peer.ask(
                "build",
                tables=[str(directory / f"{x.name}.rows") for x in tables],
                shapes=[x.rows.shape for x in tables],
                format=row_format,
                dim=config.embedding_dim,
                ids=str(directory / "ids.npy"),
            )
        for size in FLAGS.batch_sizes:
            if peer is not None:
                check(ours, peer, size, directory)
            count = max(1, min(_MOST_BATCHES, _SAMPLES // size))
            limit = least_seconds(ids[:size], tables, lines)
            own, theirs = [], []
            for _ in range(FLAGS.rounds):
                own.append(ours.calls_per_second(size, count))
                if peer is not None:
                    request = {"size": size, "batches": count, "seconds": FLAGS.seconds}
                    answer = peer.ask("run", **request, processor_time=FLAGS.threads == 1)
                    theirs.append(answer["calls_per_second"])
            rate = statistics.median(own)
            cells = [row_format, f"{size}", f"{1e6 / rate:.1f}", f"{1e6 * limit:.1f}"]
            cells.append(f"{rate * size * ids.shape[1] / 1e6:.1f}")
            if theirs:
                low, median, high = ratio_quartiles(own, theirs)
                other = statistics.median(theirs)
                cells += [f"{1e6 / other:.1f}", f"{median:.2f} ({low:.2f} to {high:.2f})"]
            else:
                cells += ["", ""]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Goes through formats and batch sizes and prints a row of the table for each."""
    formats: list[RowFormat] = [as_row_format(name) for name in FLAGS.formats]
    config = preset(FLAGS.preset)
    if FLAGS.rows:
        rows = tuple(min(x, FLAGS.rows) for x in config.table_rows)
        config = dataclasses.replace(config, table_rows=rows)
    exponent = 0.0 if FLAGS.ids == "uniform" else config.zipf_exponent or 1.05
    ids = draw_ids(config.table_rows, _SAMPLES, exponent, config.seed)
    lines = roofline.measure(16, library.load()).row_bytes / _LINE
    print(
        f"{sum(config.table_rows):,} rows of {config.embedding_dim} numbers, ids {FLAGS.ids}; "
        f"native kernels: {library.version()}; {1e-6 * lines:.1f} million cache lines a second at "
        f"random; load average {os.getloadavg()[0]:.1f}\n"
    )
    print("| format | batch | ours, us | limit, us | million rows/s | FBGEMM, us | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with ExitStack() as stack:
        peer = None
        if FLAGS.fbgemm:
            path = Path(FLAGS.environment) if FLAGS.environment else cache_directory() / "peers"
            module = "experiments.benchmarks.peers.workers.torch_stored_rows"
            threads = {"OMP_NUM_THREADS": str(FLAGS.threads)} if FLAGS.threads else {}
            worker = Worker(
                "FBGEMM",
                environment.ready(path),
                module,
                environment={"OMP_WAIT_POLICY": "active", **threads},
            )
            peer = stack.enter_context(Contestant(worker))
        for name in formats:
            of_format = peer if name in _PEER_FORMATS else None
            for line in lines_of(name, config, ids, of_format, lines):
                print(line, flush=True)


if __name__ == "__main__":
    run(main)

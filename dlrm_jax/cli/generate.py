"""Generates Criteo-shaped data of any size, or a click log, from a seed.

    python -m dlrm_jax generate --output=train.txt --examples=1000000
    python -m dlrm_jax generate --output=criteo --days=24 --preset=terabyte --examples=1000000
    python -m dlrm_jax generate --output=arrays --format=arrays --days=7 --examples=1000000
    python -m dlrm_jax generate --output=clicks --format=log --days=7 --examples=50000
    python -m dlrm_jax generate --trace=trace.txt --save_profile=profile.json
    python -m dlrm_jax generate --output=train.txt --examples=1000000 --profile=profile.json

A planted teacher decides the labels. So the best possible AUC is known, and printed at the end.
The same flags give the same bytes. But for a log, more examples begin with the same ones.

A click log is day_0.parquet, day_1.parquet, … and schema.json: users, items, what users clicked
on before, clicks and purchases. Each row has its true ``click_probability``, which the schema
doesn't name. The label of schema.json is the click; schema_labels.json has both labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from dlrm_jax.cli.flags import FLAGS, define_numbers, refuse, refuse_unless, require
from dlrm_jax.data.auc import auc, grouped_auc
from dlrm_jax.data.formats.parquet import writing
from dlrm_jax.data.generated.click_log import LABELS, SCHEMA, ClickLog
from dlrm_jax.data.generated.example_files import write_arrays, write_raw
from dlrm_jax.data.generated.example_stream import CHUNK, Chunk, ExampleStream
from dlrm_jax.data.generated.locality import StackProfile, read_trace
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating, write_json
from dlrm_jax.presets import PRESETS, preset

flags.DEFINE_string(
    "output",
    None,
    "File to make, compressed if it ends in .gz or .zst; with --days, a directory; such as "
    "train.txt.",
)
flags.DEFINE_enum(
    "format",
    "raw",
    ["raw", "arrays", "log"],
    "Tab-separated lines; NumPy files of two days or more; or a click log as Parquet.",
)
flags.DEFINE_integer(
    "examples", None, "Examples of each day, or in all without --days; such as 1000000.", 1
)
flags.DEFINE_integer("days", None, "Days: day_0, day_1, ... in a directory; such as 24.", 1)
flags.DEFINE_float(
    "drift",
    0.01,
    "Share of a table's ids, or of a log's items, that are new on each day; such as 0.05.",
)
flags.DEFINE_integer("users", 20_000, "Users of a log; such as 1000000.", 10)
flags.DEFINE_integer("items", 2_000, "Items of a log at a time; such as 100000.", 10)
flags.DEFINE_enum("preset", "kaggle", list(PRESETS), "Preset whose tables the data have.")
define_numbers(
    "table_rows", None, "Rows of each of the 26 tables, instead of the preset's; such as 7,3000."
)
flags.DEFINE_float(
    "zipf_exponent", None, "Zipf exponent, instead of the preset's; 0 for uniform ids; such as 1.2."
)
flags.DEFINE_integer("seed", 0, "Seed of the teacher and the examples; such as 1.")
flags.DEFINE_string(
    "trace", None, "File of one id per line whose locality the ids get; such as trace.txt."
)
flags.DEFINE_string(
    "profile", None, "File of a locality that --save_profile wrote; such as profile.json."
)
flags.DEFINE_string(
    "save_profile", None, "File to make for the locality of --trace, as JSON; such as profile.json."
)

_SAMPLE = 1 << 20  # examples that the ceiling is measured on


def main() -> None:
    """Profile, stream, files, summary."""
    check_flags()
    profile = load_profile()
    if not FLAGS.output:
        return
    if FLAGS.format == "log":
        with creating(Path(FLAGS.output)) as output:
            write_log(output)
        return
    config = preset(FLAGS.preset)
    exponent = config.zipf_exponent if FLAGS.zipf_exponent is None else FLAGS.zipf_exponent
    drift = FLAGS.drift if profile is None else 0.0  # new ids are a part of the locality
    rows = FLAGS.table_rows or config.table_rows
    stream = ExampleStream(rows, exponent, FLAGS.seed, FLAGS.days or 1, drift, profile)
    tally = Tally()
    begun = time.perf_counter()
    with creating(Path(FLAGS.output)) as output:
        write(stream, output, tally)
    seconds = time.perf_counter() - begun
    print(
        f"{tally.examples:,} examples, {tally.positives / tally.examples:.2%} of the labels 1, "
        f"{seconds:.1f} s ({tally.examples / seconds:,.0f} examples/s); see {FLAGS.output}"
    )
    sampled, ceiling = tally.ceiling()
    print(
        f"best possible AUC, that of the teacher: {ceiling:.5f} (measured on {sampled:,} examples)"
    )


def check_flags() -> None:
    """Refuses flags that are missing, contradict each other, or that nothing would read."""
    if not FLAGS.save_profile:
        require("output")
    if FLAGS.output:
        require("examples")
    if FLAGS.trace and FLAGS.profile:
        raise UserError("--trace and --profile: expected one of them, got both")
    refuse_unless(FLAGS.trace, "--trace", "save_profile")
    refuse_unless((FLAGS.days or 1) > 1, "--days of 2 or more", "drift")
    refuse_unless(FLAGS.format == "log", "--format=log", "users", "items")
    if FLAGS.format == "log":
        of_examples = ("preset", "table_rows", "zipf_exponent", "trace", "profile", "save_profile")
        refuse(of_examples, "with --format=log: users and items decide ids")
        require("days")
    of_output = ("format", "examples", "days", "preset", "table_rows", "seed")
    refuse_unless(FLAGS.output, "--output", *of_output)
    if FLAGS.trace or FLAGS.profile:
        refuse(["zipf_exponent", "drift"], "with --trace or --profile: they decide ids")
    suffix = Path(FLAGS.output or "").suffix
    if FLAGS.format == "arrays" and (FLAGS.days or 1) < 2:
        raise UserError(
            "--format=arrays: expected --days of 2 or more, as the last day is for validation and "
            f"test, got {FLAGS.days or 'none'}"
        )
    if suffix in (".gz", ".zst") and FLAGS.days:
        raise UserError(
            f"--output: --days makes a directory, got the name {FLAGS.output} of a compressed file"
        )


def load_profile() -> StackProfile | None:
    """The locality of the ids, measured or read; None for Zipf's law."""
    if not FLAGS.profile and not FLAGS.trace:
        return None
    try:
        if FLAGS.profile:
            return StackProfile.load(Path(FLAGS.profile))
        trace = read_trace(Path(FLAGS.trace))
    except OSError as error:
        flag = "profile" if FLAGS.profile else "trace"
        raise UserError(f"--{flag}: expected a file that can be read: {error}") from error
    profile = StackProfile.measure(trace)
    print(f"{FLAGS.trace}: {len(trace):,} accesses to {profile.counts[0]:,} ids")
    if FLAGS.save_profile:
        with creating(Path(FLAGS.save_profile)) as path:
            profile.save(path)
    return profile


def write_log(directory: Path) -> None:
    """Writes a click log to a directory, and prints what the best possible model reaches."""
    directory.mkdir()
    write_json(directory / "schema.json", SCHEMA)
    write_json(directory / "schema_labels.json", {**SCHEMA, "label": LABELS})
    log = ClickLog(FLAGS.users, FLAGS.items, FLAGS.drift, FLAGS.days, FLAGS.seed)
    # Shown on terminals only.
    for number, day in enumerate(
        tqdm(log.each_day(FLAGS.examples), total=FLAGS.days, disable=None)
    ):
        path = directory / f"day_{number}.parquet"
        with writing(path):
            day.frame.write_parquet(path)
        rates = [f"{day.frame[name].mean():.2%} {name}" for name in ("clicked", "purchased")]
        labels = day.frame["clicked"].to_numpy()
        purchases = day.frame["purchased"].to_numpy()
        bought = day.click - np.logaddexp(0, day.click) - np.logaddexp(0, -day.purchase)
        best = [
            ("AUC", auc(day.click, labels)),
            ("AUC without last_viewed", auc(day.without_history, labels)),
            ("GAUC by user", grouped_auc(day.click, labels, day.users)),
            ("AUC of purchases", auc(bought, purchases)),
        ]
        print(
            f"day_{number}: {len(labels):,} impressions, {', '.join(rates)}; best possible: "
            f"{', '.join(f'{name} {value:.5f}' for name, value in best)}"
        )
    print(f"see {FLAGS.output}")


class Tally:
    """Counts of the examples, printed at the end."""

    def __init__(self) -> None:
        self.examples, self.positives = 0, 0
        self._sample: list[tuple[np.ndarray, np.ndarray]] = []

    def watch(self, stream: ExampleStream, day: int, progress: tqdm) -> Iterator[Chunk]:
        """The chunks of a day, the last one cut to measure."""
        chunks = stream.day(day)
        for start in range(0, FLAGS.examples, CHUNK):
            whole = next(chunks)
            if len(self._sample) < _SAMPLE // CHUNK:
                # Whole chunks, so that few examples don't make the ceiling a matter of luck.
                self._sample.append((whole.logits, whole.labels))
            chunk = whole.first(FLAGS.examples - start)
            yield chunk
            self.examples += len(chunk)
            self.positives += int(chunk.labels.sum())
            progress.update(len(chunk))

    def ceiling(self) -> tuple[int, float]:
        """The number of examples in the sample, and the AUC of their true probabilities."""
        logits, labels = map(np.concatenate, zip(*self._sample, strict=True))
        return len(labels), auc(logits, labels)


def write(stream: ExampleStream, output: Path, tally: Tally) -> None:
    """Writes all days to a file or directory, counting them."""
    total = stream.days * FLAGS.examples
    # Shown on terminals only.
    with tqdm(total=total, unit=" examples", unit_scale=True, disable=None) as progress:
        if FLAGS.format == "raw" and not FLAGS.days:
            chunks = tally.watch(stream, 0, progress)
            write_raw(output, chunks, Path(FLAGS.output).suffix)
            return
        output.mkdir()
        for day in range(stream.days):
            chunks = tally.watch(stream, day, progress)
            if FLAGS.format == "raw":
                write_raw(output / f"day_{day}", chunks)
            else:
                write_arrays(output, day, FLAGS.examples, chunks)

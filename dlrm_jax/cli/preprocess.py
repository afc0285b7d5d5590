"""Makes arrays that ``dlrm_jax train`` reads, from logs of any size, out of core.

    python -m dlrm_jax preprocess --input=train.txt --output=criteo
    python -m dlrm_jax preprocess --input=day_0.gz,day_1.gz --output=criteo --min_count=10
    python -m dlrm_jax preprocess --input=train.txt --output=criteo --compatible=reference
    python -m dlrm_jax preprocess --input=a.parquet --schema=schema.json --output=a
    python -m dlrm_jax preprocess --input=b.parquet --schema=schema.json --output=b --grow=a

then ``python -m dlrm_jax train --data=criteo``. If it is interrupted, run the same command again to
resume. ``python -m dlrm_jax report --data=criteo`` describes the result.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

from absl import flags, logging

from dlrm_jax.cli.flags import (
    FLAGS,
    define_numbers,
    mark_required,
    paths,
    refuse_unless,
    require,
)
from dlrm_jax.cli.split_table import split_rule, split_table, unseen_by_split
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.multi_hot import MLPERF_ROWS, MLPERF_SIZES
from dlrm_jax.data.preprocessing.growth import min_count_before
from dlrm_jax.data.preprocessing.options import Compatible, Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.data.preprocessing.split_rule import parse_rule
from dlrm_jax.errors import UserError
from dlrm_jax.text_table import text_table

flags.DEFINE_list(
    "input",
    None,
    "Files in the order of time: Criteo's text or MLPerf's binary form, plain, gzip or zstandard; "
    "with --schema, Parquet or CSV; a path with a comma in double quotes; such as "
    "day_0.gz,day_1.gz.",
)
flags.DEFINE_string(
    "split",
    None,
    "Rows held out: time, user=COLUMN or fraction, with shares of validation and test behind a "
    "colon; time:7d,1d; days; column=COLUMN; rows=FILE; files; none. Without it, time if the "
    "schema has a timestamp, otherwise days; such as user=user_id:0.1,0.1.",
)
flags.DEFINE_string(
    "validation", None, "File for validation, with --test, for --split=files; such as day_22.gz."
)
flags.DEFINE_string(
    "test", None, "File for test, with --validation or without one; such as day_23.gz."
)
flags.DEFINE_string("output", None, "Directory to make; such as criteo.")
flags.DEFINE_string(
    "schema", None, "JSON file with the meaning of the columns; such as schema.json."
)
flags.DEFINE_integer(
    "min_count",
    None,
    "Occurrences below which values share one id; without it, that of --grow, or 1; such as 10.",
)
flags.DEFINE_integer(
    "max_rows",
    0,
    "Most rows of a table, those of --grow included; 0 for any; such as 40000000.",
)
flags.DEFINE_string(
    "grow", None, "Directory whose vocabularies go on: old values keep their ids; such as criteo."
)
flags.DEFINE_enum(
    "compatible",
    None,
    [name for name in get_args(Compatible) if name],
    "Program whose ids and dense features are made from Criteo's columns.",
)
define_numbers(
    "max_ind_range",
    (),
    "Modulus of values (reference) or ids (torchrec), one or one for each column, with "
    "--compatible; mlperf for the rows of its tables; such as 40000000.",
    low=1,
    named={"mlperf": MLPERF_ROWS},
)
flags.DEFINE_float(
    "drop_negatives", 0.0, "Share of training examples of label 0 left out at random; such as 0.5."
)
flags.DEFINE_integer("seed", 0, "Seed of --drop_negatives and of random splits; such as 1.")
define_numbers(
    "multi_hot_sizes",
    (),
    "Ids that are made from each one, one number for each column, as MLPerf does; mlperf for its "
    "sizes; such as mlperf.",
    low=1,
    named={"mlperf": MLPERF_SIZES},
)
flags.DEFINE_enum("on_bad_line", "stop", ["stop", "skip"], "Treatment of malformed lines.")
mark_required("input", "output")


def main() -> None:
    """Makes the arrays, then prints tables and counts."""
    check_flags()
    logging.set_verbosity(logging.INFO)
    begun = time.perf_counter()
    output = Path(FLAGS.output)
    there = output.exists()
    grow = Path(FLAGS.grow) if FLAGS.grow else None
    options = Options(
        Schema.from_json(Path(FLAGS.schema)) if FLAGS.schema else CRITEO,
        min_count=chosen_min_count(grow),
        max_rows=FLAGS.max_rows,
        on_bad_line=FLAGS.on_bad_line,
        compatible=FLAGS.compatible or "",
        max_ind_range=FLAGS.max_ind_range,
        drop_negatives=FLAGS.drop_negatives,
        seed=FLAGS.seed,
        multi_hot_sizes=FLAGS.multi_hot_sizes,
        split=FLAGS.split or "",
    )
    metadata = preprocess(
        paths("input"),
        output,
        options,
        [Path(path) for path in (FLAGS.validation, FLAGS.test) if path],
        grow,
    )
    summarize(metadata)
    rows, seconds = sum(metadata.days), time.perf_counter() - begun
    done = "there already" if there else f"{seconds:.1f} s ({rows / seconds:,.0f} rows/s)"
    print(f"{rows:,} rows in {len(metadata.days)} days, {done}; see {output}")


def chosen_min_count(grow: Path | None) -> int:
    """``min_count`` of the flag, or of the data that grow, which is printed, or 1."""
    if FLAGS.min_count is not None:
        return FLAGS.min_count
    if grow is None:
        return 1
    before = min_count_before(grow)
    print(f"as {grow} has: --min_count={before}")
    return before


def check_flags() -> None:
    """Refuses flags that are missing or that nothing would read."""
    require("input", "output")
    if FLAGS.validation and not FLAGS.test:
        raise UserError("--validation needs --test, the file for test; such as --test=day_23.gz")
    is_random = bool(FLAGS.split) and parse_rule(FLAGS.split).is_random
    refuse_unless(FLAGS.drop_negatives or is_random, "--drop_negatives or a random split", "seed")


def summarize(metadata: Metadata) -> None:
    """Prints tables and counts."""
    shared, total = metadata.shared, 0
    lines = []
    for name, rows in zip(metadata.columns, metadata.table_rows, strict=True):
        total += rows if name not in shared else 0
        lines.append((name, f"that of {shared[name]}" if name in shared else f"{rows:,}"))
    print(text_table(("column", "rows of its table"), [*lines, ("all", f"{total:,}")]))
    if metadata.dates:
        print(f"dates from {' to '.join(metadata.dates)}")
    rule = split_rule(metadata)
    if rule.startswith("rows=") and FLAGS.split:  # of a file, the hash of its content
        rule = f"{FLAGS.split} (content {rule.removeprefix('rows=')[:12]})"
    print(f"--split={rule}:")
    print(text_table(*split_table(metadata)))
    if warning := unseen_by_split(metadata):
        print(warning)
    if metadata.skipped_lines:
        print(f"skipped {metadata.skipped_lines:,} malformed lines")
    if metadata.dropped_negatives:
        print(f"left out {metadata.dropped_negatives:,} examples with label 0")

"""Makes arrays that the main job reads from logs of any size, out of core.

    python -m experiments.preprocess --input=train.txt --output=criteo
    python -m experiments.preprocess --input=day_0.gz,day_1.gz --output=criteo --min_count=10
    python -m experiments.preprocess --input=train.txt --output=criteo --compatible=reference
    python -m experiments.preprocess --input=log.parquet --schema=schema.json --output=log

then ``python -m experiments.criteo --data=criteo``. Interrupted, the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from dlrm_jax.data.preprocessing.pipeline import Options, preprocess
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.errors import UserError
from experiments.program import FLAGS, run

flags.DEFINE_list("input", None, "files in the order of time: Criteo text (plain, gzip or "
                  "zstandard) or, with --schema, Parquet or CSV")  # fmt: skip
flags.DEFINE_string("output", None, "the directory to make")
flags.DEFINE_string("schema", None, "a JSON file that says what the columns mean")
flags.DEFINE_integer("min_count", 1, "rarer values share one id")
flags.DEFINE_integer("max_rows", 0, "rows that a table may have at most; 0 for no limit")
flags.DEFINE_enum("compatible", None, ["reference"], "make the ids and dense features that the "
                  "DLRM paper's implementation makes of Criteo text")  # fmt: skip
flags.DEFINE_integer("max_ind_range", 0, "with --compatible=reference, values modulo this; 0: not")
flags.DEFINE_enum("on_bad_line", "stop", ["stop", "skip"], "what to do with malformed lines")


def main(argv: Sequence[str]) -> None:
    """Prepares, then says what there is."""
    del argv
    for flag in ("input", "output"):
        if not FLAGS[flag].value:
            raise UserError(f"--{flag} is missing")
    if FLAGS.schema and FLAGS.on_bad_line == "skip":
        raise UserError("--on_bad_line has no effect with --schema")
    logging.set_verbosity(logging.INFO)
    options = Options(
        Schema.from_json(Path(FLAGS.schema)) if FLAGS.schema else CRITEO,
        FLAGS.min_count,
        FLAGS.max_rows,
        FLAGS.on_bad_line,
        FLAGS.compatible == "reference",
        FLAGS.max_ind_range,
    )
    begun = time.perf_counter()
    output = Path(FLAGS.output)
    metadata = preprocess([Path(path) for path in FLAGS.input], output, options)
    seconds = time.perf_counter() - begun
    rows = sum(metadata.days)
    print(f"{'column':<20} {'rows of its table':>18}")
    for name, table_rows in zip(metadata.columns, metadata.table_rows, strict=True):
        print(f"{name:<20} {table_rows:>18,}")
    if metadata.skipped_lines:
        print(f"skipped {metadata.skipped_lines:,} malformed lines")
    print(
        f"{rows:,} rows in {len(metadata.days)} days, {sum(metadata.table_rows):,} rows of tables, "
        f"{seconds:.1f} s ({rows / seconds:,.0f} rows/s); see {output}"
    )


if __name__ == "__main__":
    run(main)

"""Makes arrays that the main job reads from logs of any size, out of core.

    python -m dlrm_jax preprocess --input=train.txt --output=criteo
    python -m dlrm_jax preprocess --input=day_0.gz,day_1.gz --output=criteo --min_count=10
    python -m dlrm_jax preprocess --input=train.txt --output=criteo --compatible=reference
    python -m dlrm_jax preprocess --input=a.parquet --schema=schema.json --output=a
    python -m dlrm_jax preprocess --input=b.parquet --schema=schema.json --output=b --grow=a
    python -m dlrm_jax preprocess --report=criteo

then ``python -m experiments.criteo --data=criteo``. Interrupted, the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from absl import flags, logging

from dlrm_jax.cli.data_report import write_report
from dlrm_jax.cli.program import FLAGS, run
from dlrm_jax.data.directory import Metadata
from dlrm_jax.data.multi_hot import MLPERF_ROWS, MLPERF_SIZES
from dlrm_jax.data.preprocessing.options import Compatible, Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.errors import UserError

flags.DEFINE_list("input", None, "files in the order of time: Criteo's text or MLPerf's binary "
                  "form (plain, gzip or zstandard) or, with --schema, Parquet or CSV")  # fmt: skip
flags.DEFINE_string("validation", None, "a file for validation alone, instead of half a day")
flags.DEFINE_string("test", None, "a file for test alone, with --validation")
flags.DEFINE_string("output", None, "the directory to make")
flags.DEFINE_string("schema", None, "a JSON file that says what the columns mean")
flags.DEFINE_integer("min_count", 1, "rarer values share one id")
flags.DEFINE_integer("max_rows", 0, "rows that a table may have at most; 0 for no limit")
flags.DEFINE_string("grow", None, "a directory whose vocabularies go on: old values keep their "
                    "ids, new ones follow")  # fmt: skip
flags.DEFINE_enum("compatible", None, [name for name in get_args(Compatible) if name],
                  "whose ids and dense features to make of Criteo's columns")  # fmt: skip
flags.DEFINE_list("max_ind_range", [], "with --compatible: values (the reference) or ids "
                  "(TorchRec) modulo this number, or one for each column; 'mlperf' for its "
                  "tables' rows")  # fmt: skip
flags.DEFINE_float("drop_negatives", 0.0, "share of the training examples with label 0 that is "
                   "left out at random")  # fmt: skip
flags.DEFINE_integer("seed", 0, "of --drop_negatives")
flags.DEFINE_list("multi_hot_sizes", [], "make so many ids of each one, as MLPerf does; 'mlperf' "
                  "for its sizes")  # fmt: skip
flags.DEFINE_enum("on_bad_line", "stop", ["stop", "skip"], "what to do with malformed lines")
flags.DEFINE_string("report", None, "a prepared directory: write what is in it as a page there")


def main(argv: Sequence[str]) -> None:
    """Prepares, then says what there is; or reports what was prepared."""
    del argv
    check_flags()
    if FLAGS.report:
        page = Path(FLAGS.report) / "report.html"
        write_report(Path(FLAGS.report), page)
        print(f"see {page}")
        return
    logging.set_verbosity(logging.INFO)
    begun = time.perf_counter()
    output = Path(FLAGS.output)
    there = output.exists()
    metadata = preprocess(
        [Path(path) for path in FLAGS.input],
        output,
        make_options(),
        [Path(path) for path in (FLAGS.validation, FLAGS.test) if path],
        Path(FLAGS.grow) if FLAGS.grow else None,
    )
    summarize(metadata)
    rows, seconds = sum(metadata.days), time.perf_counter() - begun
    done = "there already" if there else f"{seconds:.1f} s ({rows / seconds:,.0f} rows/s)"
    print(f"{rows:,} rows in {len(metadata.days)} days, {done}; see {output}")


def check_flags() -> None:
    """Flags that are missing, or that nothing would read, are refused.

    Raises:
        UserError: naming the flag.
    """
    if FLAGS.report:
        given = [flag.name for flag in FLAGS.get_key_flags_for_module(__name__) if flag.present]
        others = [name for name in given if name != "report"]
        if others:
            raise UserError(f"--{others[0]} has no effect with --report, which makes no arrays")
        return
    for flag in ("input", "output"):
        if not FLAGS[flag].value:
            raise UserError(f"--{flag} is missing")
    if bool(FLAGS.validation) != bool(FLAGS.test):
        raise UserError("--validation and --test: expected a file for both, or for neither")
    if FLAGS["seed"].present and not FLAGS.drop_negatives:
        raise UserError("--seed has no effect without --drop_negatives")


def make_options() -> Options:
    """What the flags ask for."""
    return Options(
        Schema.from_json(Path(FLAGS.schema)) if FLAGS.schema else CRITEO,
        min_count=FLAGS.min_count,
        max_rows=FLAGS.max_rows,
        on_bad_line=FLAGS.on_bad_line,
        compatible=FLAGS.compatible or "",
        max_ind_range=integers("max_ind_range", MLPERF_ROWS),
        drop_negatives=FLAGS.drop_negatives,
        seed=FLAGS.seed,
        multi_hot_sizes=integers("multi_hot_sizes", MLPERF_SIZES),
    )


def integers(flag: str, mlperf: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers that a flag gives.

    Raises:
        UserError: they are none.
    """
    items: list[str] = FLAGS[flag].value or []
    try:
        return mlperf if items == ["mlperf"] else tuple(int(item) for item in items)
    except ValueError:
        raise UserError(
            f"--{flag}: expected integers with commas, or mlperf, got {','.join(items)!r}"
        ) from None


def summarize(metadata: Metadata) -> None:
    """Prints tables and counts."""
    print(f"{'column':<20} {'rows of its table':>18}")
    for name, table_rows in zip(metadata.columns, metadata.table_rows, strict=True):
        print(f"{name:<20} {table_rows:>18,}")
    if metadata.skipped_lines:
        print(f"skipped {metadata.skipped_lines:,} malformed lines")
    if metadata.dropped_negatives:
        print(f"left out {metadata.dropped_negatives:,} examples with label 0")
    print(f"{'all':<20} {sum(metadata.table_rows):>18,}")


if __name__ == "__main__":
    run(main)

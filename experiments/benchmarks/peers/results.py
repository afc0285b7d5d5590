"""Keeps the results of `experiments.benchmarks.peers` for each processor, and shows them.

    python -m experiments.benchmarks.peers.results --add=peers.json \
        --processor=amd-epyc-zen4
    python -m experiments.benchmarks.peers.results

The first command adds the matches of a run to docs/results/amd-epyc-zen4.csv,
in place of older ones of the same kind. The second prints two tables: for each
kind of match and processor the ratio against the fastest peer, then the least
over all of them for each precision and work, which is what may be claimed. A
star marks a ratio whose quartiles were more than a tenth of it apart; in a file
without quartiles, one that was measured while bytes took long from core to core.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from absl import flags

from dlrm_jax.cli.flags import FLAGS, refuse
from dlrm_jax.cli.run import run
from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json, write_text

DIRECTORY = Path("docs/results")
"""One CSV file for each processor, with a row for each match."""

KEY = ("preset", "batch", "work", "precision", "peer")
"""What tells one match from another on the same processor."""

SCHEMA = {
    **dict.fromkeys(KEY, pl.String),
    "batch": pl.Int64,
    **dict.fromkeys(("ours_ms", "peer_ms", "ratio", "lower", "upper"), pl.Float64),
    "unsteady": pl.Boolean,
}
"""Milliseconds of a step, the median ratio of the rounds, its quartiles; some may be unknown."""

_OF_CASE = ["precision", "preset", "batch", "work"]
_FLOATS = [name for name, kind in SCHEMA.items() if kind == pl.Float64]


def of_run(path: Path) -> pl.DataFrame:
    """The matches of a run's JSON file, as rows.

    Raises:
        UserError: it is no such file, or has a match that can't be.
    """
    try:
        found = matches_of(read_json(path))
    except (ValueError, TypeError, LookupError, OverflowError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{path}: expected a file by --output of experiments.benchmarks.peers; "
            f"{type(error).__name__}: {error}"
        ) from error
    return _checked(path, found)


def matches_of(report: dict[str, Any]) -> pl.DataFrame:
    """The matches of a run's JSON, as rows."""
    rows = []
    for match in report["matches"]:
        optimizer = match["optimizer"]
        rows.append(
            {
                "preset": match["preset"],
                "batch": match["batch_size"],
                "work": f"{match['mode']}, {optimizer}" if optimizer else match["mode"],
                "precision": match["precision"],
                "peer": match["peer"],
                "ours_ms": 1e3 * match["our_seconds"],
                "peer_ms": 1e3 * match["peer_seconds"],
                "ratio": match["ratio"],
                "lower": match["ratio_quartiles"][0],
                "upper": match["ratio_quartiles"][1],
                "unsteady": match["is_unsteady"],
            }
        )
    return pl.DataFrame(rows, SCHEMA).with_columns(pl.col(_FLOATS).round_sig_figs(4))


def read(path: Path) -> pl.DataFrame:
    """The matches on one processor.

    Raises:
        UserError: the file has other columns, no match, or one that can't be.
    """
    try:
        # By names: a schema alone would count columns, whatever the header says.
        found = pl.read_csv(path, schema_overrides=SCHEMA).select(*SCHEMA)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: expected the columns {', '.join(SCHEMA)}; {error}") from error
    return _checked(path, found)


def _checked(path: Path, found: pl.DataFrame) -> pl.DataFrame:
    """The matches of a file, each of which counts: a lost or damaged one could raise the claim.

    Raises:
        UserError: there are none; or one lacks more than milliseconds or quartiles, or has a number
            that isn't positive and finite.
    """
    lacks = pl.any_horizontal(pl.col(*KEY, "ratio", "unsteady").is_null())
    numbers = pl.col(_FLOATS)
    wrong = pl.any_horizontal(~(numbers.is_finite() & (numbers > 0)), pl.col("batch") < 1)
    bad = found.with_row_index("row", 1).filter(lacks | wrong.fill_null(False))
    if len(bad) or found.is_empty():
        got = f"row {', '.join(map(str, bad.row(0)))}" if len(bad) else "no rows"
        raise UserError(
            f"{path}: expected matches with their ratio, of positive finite numbers, got {got}; "
            f"restore the file, or measure again"
        )
    return found


def add(path: Path, found: pl.DataFrame) -> None:
    """Writes matches to a processor's file, in place of those of the same kind."""
    kept = read(path).join(found, on=list(KEY), how="anti") if path.exists() else found.clear()
    whole = pl.concat([kept, found]).sort(*_OF_CASE, "peer")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, whole.write_csv())


def side_by_side(files: Sequence[Path]) -> list[list[str]]:
    """Lines of cells: for each case and processor, the ratio against the fastest peer."""
    found = strongest(files)
    names = [path.stem for path in files]
    lines = [["precision", "preset", "batch", "work", *names]]
    for case, rows in found.group_by(_OF_CASE, maintain_order=True):
        cells = {row["processor"]: _cell(row) for row in rows.iter_rows(named=True)}
        lines.append([*map(str, case), *(cells.get(name, "") for name in names)])
    return lines


def least(files: Sequence[Path]) -> list[list[str]]:
    """Lines of cells: for each precision and kind of work, the least ratio over all processors."""
    found = strongest(files).with_columns(kind=pl.col("work").str.split(",").list.first())
    lines = [["precision", "work", "least ratio", "preset, batch, work", "processor"]]
    for (precision, kind), rows in found.group_by("precision", "kind", maintain_order=True):
        row = rows.sort("ratio").row(0, named=True)
        case = f"{row['preset']}, {row['batch']}, {row['work']}"
        lines.append([str(precision), str(kind), _cell(row), case, row["processor"]])
    return lines


def strongest(files: Sequence[Path]) -> pl.DataFrame:
    """The match against the fastest peer, for each case and processor."""
    frames = [read(path).with_columns(processor=pl.lit(path.stem)) for path in files]
    if not frames:
        raise UserError(f"expected files of results in {DIRECTORY}, found none; see --add")
    each = pl.concat(frames).sort("ratio").group_by(*_OF_CASE, "processor").first()
    order = pl.col("precision") != "float32"
    return each.sort(order, "preset", "batch", pl.col("work") == "infer", "work", "processor")


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first line of which is its header."""
    header, *rows = ([*line] for line in lines)
    return "\n".join(f"| {' | '.join(x)} |" for x in (header, ["---"] * len(header), *rows))


def _cell(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f}{chr(92) + '*' if row['unsteady'] else ''} ({row['peer']})"


def main() -> None:
    """Adds the matches of a run, or prints the tables."""
    if FLAGS.add:
        if not FLAGS.processor:
            raise UserError("--processor: expected a name for the processor, such as amd-epyc-zen4")
        path = DIRECTORY / f"{FLAGS.processor}.csv"
        found = of_run(Path(FLAGS.add))
        add(path, found)
        print(f"{path}: {len(found)} matches of {FLAGS.add} added")
        return
    refuse(["processor"], "without --add")
    files = sorted(DIRECTORY.glob("*.csv"))
    print(markdown(side_by_side(files)), markdown(least(files)), sep="\n\n")


if __name__ == "__main__":
    flags.DEFINE_string("add", None, "JSON file by --output of peers, to add; such as peers.json.")
    flags.DEFINE_string("processor", None, "Name of the processor's file; such as intel-xeon-amx.")
    run(main)

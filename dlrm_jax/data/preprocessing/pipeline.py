"""Prepares logs for training: from files to a directory of arrays."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dlrm_jax.data.formats.compression import file_hash
from dlrm_jax.data.metadata import METADATA, Metadata
from dlrm_jax.data.preprocessing import freshness, headers, own_files, splits
from dlrm_jax.data.preprocessing.conversion import Conversion
from dlrm_jax.data.preprocessing.growth import check_growth
from dlrm_jax.data.preprocessing.missing_values import check_missing_values
from dlrm_jax.data.preprocessing.options import ONLY_EMPTY, Options
from dlrm_jax.data.preprocessing.row_split import RowSplit
from dlrm_jax.data.preprocessing.sources import is_parquet
from dlrm_jax.data.preprocessing.split_of_options import (
    is_known_by_row,
    make_days,
    make_splits,
    with_split,
)
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_json
from dlrm_jax.locks import locked
from dlrm_jax.workspaces import delete, sweep

_PARTIAL = ".partial"

_log = logging.getLogger(__name__)


def preprocess(
    paths: Sequence[Path],
    output: Path,
    options: Options,
    held_out: Sequence[Path] = (),
    grow: Path | None = None,
    replace: bool = False,
) -> Metadata:
    """Makes a directory of arrays from logs in the order of time, out of core.

    Days: a timestamp makes every date a day; without one, each of several files is a day, and a
    single file is one day, or seven of equal length if it is split by them. Splits: see
    `split_rule`. Vocabularies come from the training split alone.

    After an interruption, the same call resumes. If the output exists already, it does nothing. A
    second process that makes the same output waits for the first.

    Args:
        paths: the log files, in the order of time.
        output: directory for the arrays. Unfinished files are in ``OUTPUT.partial`` beside it,
            which takes about twice the space of the uncompressed text.
        options: options of the conversion.
        held_out: one more file, for test alone; or two, for validation and for test; or none.
        grow: directory of prepared data; its vocabularies are continued, and its values keep their
            ids.
        replace: whether to replace an output that was made from other files or options; otherwise
            it is an error. What this program didn't make is never replaced, nor an output with
            other files in it.

    Returns:
        The description of the output.

    Raises:
        UserError: a file can't be read, is malformed or changes meanwhile, or lies in the output;
            the output exists and doesn't match, or something comes up there meanwhile;
            ``OUTPUT.partial`` isn't unfinished work; the disk is full; the data to grow are
            replaced meanwhile.
    """
    output = output.resolve()
    grown = Metadata.read(grow) if grow else None
    files = [path.resolve() for path in (*paths, *held_out)]
    partial = output.with_name(f"{output.name}{_PARTIAL}")
    own_files.check_outside(files, (output, partial))
    options = with_split(options, len(held_out), (output, partial))
    _check(files, len(held_out), options)
    if grown:
        check_growth(options, grown)
        before = Options.from_json(grown.made_from["options"])
        options = dataclasses.replace(options, csv_missing=before.csv_missing)
    recipe = _recipe(files, options, len(held_out), grown)
    try:
        if _is_finished(output, recipe, replace):
            return Metadata.read(output)  # without a lock, as it may belong to someone else
        with locked(output.with_name(f".{output.name}.lock"), f"output {output}", wait=True):
            if _is_finished(output, recipe, replace):  # another process was faster
                return Metadata.read(output)
            if output.is_dir() and _is_empty(output):
                output.rmdir()
            replaced = output.stat() if output.exists() else None
            freshness.begin(partial, recipe)
            if not (partial / METADATA).exists():
                _run(files, Conversion(partial, options), recipe, len(held_out), grow)
            for unneeded in (*own_files.TEMPORARY, own_files.BEGUN):
                delete(partial / unneeded)
            for directory in (partial, *filter(Path.is_dir, partial.iterdir())):
                sweep(directory)  # of a process that was killed just after it wrote a file
            own_files.publish(partial, output, replaced)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"cannot make {output}: {error}. Finished files are kept: solve the problem, and run "
            f"the same command again to resume"
        ) from error
    return Metadata.read(output)


def find_copy(path: Path, directory: Path, options: Options) -> Path | None:
    """An output in a directory of outputs that was made of a copy of the same file, if any."""
    recipe = _recipe([path], options, 0, None)
    for metadata in sorted(directory.glob(f"[!.]*/{METADATA}")):
        output = metadata.parent
        if output.suffix != _PARTIAL and not freshness.difference(output, recipe):
            return output
    return None


def _recipe(
    files: Sequence[Path], options: Options, held_out: int, grown: Metadata | None
) -> dict[str, Any]:
    """The input files, options and all else that the arrays depend on."""
    inputs = freshness.describe(files)  # first, as it checks that they can be read
    grown_from = [*grown.grown_from, grown.fingerprint] if grown else []
    described = options.to_json() | {"held_out": held_out, "grown_from": grown_from}
    has_csv = options.schema.layout == "named" and not all(map(is_parquet, files))
    if has_csv and options.csv_missing != ONLY_EMPTY:  # earlier versions didn't name it
        described["csv_missing"] = list(options.csv_missing)
    if options.rule.kind == "rows":
        described["split"] = _given_split(options)
    return freshness.recipe(inputs, described)


def _given_split(options: Options) -> str:
    """The rule of a split by file, with the hash of the file's content in place of its path."""
    path = Path(options.rule.name)
    try:
        return f"rows={file_hash(path)}"
    except OSError as error:
        raise UserError(
            f"split: expected rows=FILE with a file that can be read, got {path}: {error.strerror}"
        ) from error


def _check(files: list[Path], held_out: int, options: Options) -> None:
    logs = len(files) - held_out
    if not logs or held_out > 2:
        raise UserError(
            f"expected files with logs, and up to two for validation and test, got {logs} and "
            f"{held_out}"
        )
    twice = [path for path in files if files.count(path) > 1]
    if twice:
        raise UserError(f"{twice[0]} is listed twice; examples must not train and test a model")
    if options.rule.kind == "time" and options.drop_negatives:
        raise UserError(
            "drop_negatives: negative examples are left out while a file is read, when a split by "
            "time isn't known yet; give --split=days with a file a day, or files for validation "
            "and test"
        )
    several = len(files) > 1 or options.compatible == "reference"
    if options.drop_negatives and not (several or is_known_by_row(options)):
        raise UserError(
            "drop_negatives: validation and test must keep all examples; give days as several "
            "files, or files for validation and test, or --split=user=COLUMN or fraction"
        )


def _is_finished(output: Path, recipe: dict[str, Any], replace: bool) -> bool:
    """Whether the output is there and matches the recipe."""
    if not output.exists() or (output.is_dir() and _is_empty(output)):
        return False
    difference = freshness.difference(output, recipe)
    if difference and not freshness.is_ours(output):
        raise UserError(
            f"{output} is in the way: no {METADATA} in it says that this program made it; move it, "
            f"or give another output directory"
        )
    if difference and not replace:
        remedy = "delete it, or give another output directory"
        if difference == freshness.OF_EARLIER_CSV:
            remedy = (
                "train with it as it is, or give another output directory to have these missing"
            )
        raise UserError(f"{output} exists and doesn't match this command: {difference}; {remedy}")
    if difference:
        own_files.check_own(output)
        _log.warning("%s doesn't match this command (%s): making it again", output, difference)
    return not difference


def _is_empty(directory: Path) -> bool:
    return not any(directory.iterdir())


def _run(
    paths: Sequence[Path],
    conversion: Conversion,
    recipe: dict[str, Any],
    held_out: int,
    grow: Path | None,
) -> None:
    options = conversion.options
    row_split = RowSplit(options.rule, options.seed) if options.rule.by_row else None
    if options.rule.kind == "rows" and _given_split(options) != recipe["options"]["split"]:
        raise UserError(
            f"{options.rule.name} changed while it was read; try again when it is complete"
        )
    headers.check_training(paths, options, row_split)
    # Held-out files keep all examples, as does the last day; the reference's implementation
    # leaves out negative ones of all days.
    complete_files = held_out or 1
    if options.compatible == "reference" or is_known_by_row(options):
        complete_files = 0
    files = conversion.stage(
        paths,
        len(paths) - complete_files if options.drop_negatives else 0,
        row_split=row_split,
    )
    freshness.check_unchanged(conversion.directory, recipe["inputs"])
    check_missing_values(paths, [file.missing for file in files], options, grow)
    _check_copies(paths, [file.content_hash for file in files], held_out)
    days = make_days(paths, files, options)
    split = make_splits(days, files, options, held_out)
    training = splits.training_rows(split, days, len(files))
    known = (grow, recipe["options"]["grown_from"][-1]) if grow else None
    rows = conversion.learn(files, training, known)
    id_ranges = conversion.write(files, days, rows)

    contents = [file.content_hash for file in files]
    schema, dates = options.schema, [day.date for day in days if day.date]
    names = {f"d{i}": name for i, name in enumerate(schema.dense)}
    names |= {f"c{i}": name for i, name in enumerate(schema.categorical)}
    metadata = Metadata(
        made_from=recipe,
        content_hashes=contents,
        fingerprint=freshness.fingerprint(contents, recipe["options"]),
        days=[len(day) for day in days],
        splits=split,
        columns=list(schema.categorical),
        table_rows=rows,
        bag_lengths=list(options.lengths),
        missing={name: sum(file.missing[key] for file in files) for key, name in names.items()},
        skipped_lines=sum(file.skipped for file in files),
        dropped_negatives=sum(file.dropped for file in files),
        smallest=[file.smallest for file in files],
        grown_from=recipe["options"]["grown_from"],
        versions={name: importlib.metadata.version(name) for name in ("numpy", "polars")},
        id_ranges=id_ranges,
        dates=[str(of(dates)) for of in (min, max)] if dates else [],
        times=splits.times_of(split, days, files) if schema.timestamp else {},
    )
    write_json(conversion.directory / METADATA, dataclasses.asdict(metadata))


def _check_copies(paths: Sequence[Path], contents: Sequence[str], held_out: int) -> None:
    """Checks that no file for validation or test is a copy of one for training."""
    training = contents[: len(paths) - held_out]
    for path, content in list(zip(paths, contents, strict=True))[len(training) :]:
        if content in training:
            raise UserError(
                f"{path} is a copy of {paths[training.index(content)]}; examples must not train "
                f"and test a model"
            )

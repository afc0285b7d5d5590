"""The whole way from files to a directory of arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from dlrm_jax.data.criteo_text import OnBadLine
from dlrm_jax.data.directory import METADATA, Metadata
from dlrm_jax.data.preprocessing import freshness, vocabulary
from dlrm_jax.data.preprocessing.encoding import Day, encode_column, write_day
from dlrm_jax.data.preprocessing.files import made, write_json
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.data.preprocessing.sources import Source
from dlrm_jax.data.preprocessing.staging import Staged, stage
from dlrm_jax.errors import UserError

DAYS = 7
"""Days that a single file is cut into; where one ends in Criteo Kaggle's isn't marked."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the arrays depend on, besides the files.

    Attributes:
        schema: of the columns.
        min_count: values that the training part holds less often share the id of unseen ones.
        max_rows: rows that a table may have at most, 0 for no limit.
        on_bad_line: what happens with malformed lines of Criteo text.
        reference: whether ids and dense features are those that the DLRM paper's implementation
            makes of Criteo text: values, missing ones among them, are numbered in order of
            first appearance over all data, that of validation and test too.
        max_ind_range: with ``reference``, values are taken modulo this before; 0 for not.

    Raises:
        UserError: a number is out of range.
    """

    schema: Schema = CRITEO
    min_count: int = 1
    max_rows: int = 0
    on_bad_line: OnBadLine = "stop"
    reference: bool = False
    max_ind_range: int = 0

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise UserError(
                f"min_count must be at least 1 (1 keeps every value), got {self.min_count}"
            )
        if self.reference and (
            self.schema is not CRITEO
            or self.min_count > 1
            or self.max_rows
            or self.max_ind_range < 0
        ):
            raise UserError(
                "the reference's ids are those of Criteo text, without a schema, min_count or "
                "max_rows; max_ind_range limits them, at least 0"
            )
        if self.max_ind_range and not self.reference:
            raise UserError("max_ind_range has no effect without the reference's ids")
        least = 2 * vocabulary.FIRST_VALUE
        if self.max_rows and self.max_rows < least:
            raise UserError(
                f"max_rows must be at least {least}, or 0 for no limit, got {self.max_rows}"
            )

    def to_json(self) -> dict[str, Any]:
        """As it stands in the metadata."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def preprocess(
    paths: Sequence[Path],
    output: Path,
    options: Options,
    replace: bool = False,
) -> Metadata:
    """Makes a directory of arrays from logs in the order of time, out of core.

    One file is cut into seven days of equal length, several are a day each. The last day is
    for validation and test (its first half), the others for training. Vocabularies come from
    the training part alone. Goes on where an interrupted call stopped; does nothing if the
    output is there already. A second process that makes the same output waits for the first.

    Args:
        paths: the files.
        output: the directory; ``OUTPUT.partial`` beside it holds what is unfinished, and needs
            about twice the room of the uncompressed text.
        options: what to make of them.
        replace: whether an output of something else is replaced, or an error.

    Raises:
        UserError: a file can't be read, is malformed or was changed meanwhile; the output is
            there already and of something else; the disk is full.
    """
    paths, output = [path.resolve() for path in paths], output.resolve()
    wanted = freshness.wanted(paths, options.to_json())
    partial = output.with_name(f"{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _locked(output):
            difference = freshness.out_of_date(output, wanted)
            if output.exists():
                if not difference:
                    return Metadata.read(output)
                if not replace:
                    raise UserError(
                        f"{output} isn't what is wanted: {difference}; delete it, or give another "
                        f"output directory"
                    )
                _log.warning("%s is made again: %s", output, difference)
            freshness.begin(partial, wanted)
            if not (partial / METADATA).exists():
                _run(paths, partial, options, wanted)
            for unneeded in ("columns", "ids", freshness.BEGUN):
                _remove(partial / unneeded)
            replaced = output.with_name(f"{output.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            if output.exists():
                output.rename(replaced)  # arrays that are mapped from it stay valid
            partial.rename(output)
            shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"cannot make {output}: {error}. What is finished is kept; the same "
            f"command goes on from there"
        ) from error
    return Metadata.read(output)


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keeps other processes from making the same output."""
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("waiting for another process that makes %s", output)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cut(rows: Sequence[int]) -> tuple[list[Day], dict[str, list[list[int]]]]:
    """Days, and splits as lists of [day, first row in it, row after the last].

    The first days are a row longer where a file's rows aren't a multiple of seven, and test
    is where the last day's are odd, as in the DLRM paper's implementation.

    Args:
        rows: of each file.

    Raises:
        UserError: a split would be empty.
    """
    if len(rows) == 1:
        each, longer = divmod(rows[0], DAYS)
        sizes = [each + (day < longer) for day in range(DAYS)]
        days, start = [], 0
        for size in sizes:
            days.append(Day(0, start, start + size))
            start += size
    else:
        days = [Day(file, 0, count) for file, count in enumerate(rows)]
        sizes = list(rows)
    last = len(days) - 1
    if sizes[last] < 2 or min(sizes) < 1:
        raise UserError(
            f"expected at least {2 * DAYS} rows, or files with at least 2 each, to split them into "
            f"training, validation and test, got {sum(rows)}"
        )
    middle = (sizes[last] + 1) // 2
    splits = {
        "train": [[day, 0, sizes[day]] for day in range(last)],
        "test": [[last, 0, middle]],
        "validation": [[last, middle, sizes[last]]],
    }
    return days, splits


def _run(paths: Sequence[Path], partial: Path, options: Options, wanted: dict[str, Any]) -> None:
    schema = options.schema
    staged = []
    for i, path in enumerate(paths):
        _log.info("reading %s", path)
        source = Source(path, schema, options.on_bad_line, options.reference, options.max_ind_range)
        staged.append(stage(source, partial / "columns" / str(i)))
    if freshness.wanted(paths, wanted["options"]) != wanted:
        raise UserError("a file was changed while it was read; try again when it is complete")
    _check_types(paths, staged, schema)
    days, splits = cut([file.rows for file in staged])
    training = sum(days[day].stop - days[day].start for day, _, _ in splits["train"])

    table_rows = []
    for i, name in enumerate(schema.categorical):
        _log.info("vocabulary and ids of %s", name)
        path = partial / "vocabularies" / f"{i}.parquet"
        if not path.exists():
            values = _values(staged, f"c{i}")
            if options.reference:
                table = vocabulary.learn_in_order(values)
            else:
                table = vocabulary.learn(values.head(training), options.min_count, options.max_rows)
            with made(path) as temporary:
                table.write_parquet(temporary)
        table_rows.append(vocabulary.rows(pl.read_parquet(path, columns=["id"])))
        for file, source in enumerate(staged):
            encode_column(source, f"c{i}", schema.lengths[i], path, _ids(partial, file, i))

    for number, day in enumerate(days):
        _log.info("arrays of day %d", number)
        ids = [_ids(partial, day.file, i) for i in range(len(schema.categorical))]
        write_day(partial, number, day, staged[day.file], schema, ids)

    contents = [file.content_hash for file in staged]
    write_json(
        partial / METADATA,
        dataclasses.asdict(
            Metadata(
                made_from=wanted,
                content_hashes=contents,
                fingerprint=freshness.fingerprint(contents, wanted["options"]),
                days=[day.stop - day.start for day in days],
                splits=splits,
                columns=list(schema.categorical),
                table_rows=table_rows,
                bag_lengths=list(schema.lengths),
                missing=_missing(staged, schema),
                grown_from=[],
                skipped_lines=sum(file.skipped for file in staged),
                versions={"polars": importlib.metadata.version("polars")},
            )
        ),
    )


def _check_types(paths: Sequence[Path], staged: Sequence[Staged], schema: Schema) -> None:
    """A value is the same in all files only if its type is."""
    types = [file.scan().collect_schema() for file in staged]
    for i, name in enumerate(schema.categorical):
        for path, found in zip(paths, types, strict=True):
            if found[f"c{i}"] != types[0][f"c{i}"]:
                raise UserError(
                    f"column {name} is {types[0][f'c{i}']} in {paths[0]}, but {found[f'c{i}']} in "
                    f"{path}; give it one type"
                )


def _values(staged: Iterable[Staged], column: str) -> pl.LazyFrame:
    return pl.concat([file.scan().select(pl.col(column).alias("value")) for file in staged])


def _missing(staged: Sequence[Staged], schema: Schema) -> dict[str, int]:
    """Examples without a value, by column."""
    columns = {f"d{i}": name for i, name in enumerate(schema.dense)}
    columns |= {f"c{i}": name for i, name in enumerate(schema.categorical)}
    counts = pl.concat([file.scan().select(*columns).null_count() for file in staged]).sum()
    found = counts.collect(engine="streaming").row(0, named=True)
    return {name: found[column] for column, name in columns.items()}


def _ids(partial: Path, file: int, column: int) -> Path:
    return partial / "ids" / str(file) / f"{column}.int32"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""The steps from files to arrays. Each step skips its finished files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.formats.parquet import writing
from dlrm_jax.data.id_ranges import complete_notes
from dlrm_jax.data.metadata import VOCABULARIES, check_unchanged
from dlrm_jax.data.preprocessing import bins, logs, vocabulary
from dlrm_jax.data.preprocessing.day_arrays import write_day
from dlrm_jax.data.preprocessing.encoding import Encoder, expansions, raw_values
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.row_split import RowSplit
from dlrm_jax.data.preprocessing.sources import Source
from dlrm_jax.data.preprocessing.splits import Day
from dlrm_jax.data.preprocessing.staging import Staged, stage
from dlrm_jax.data.preprocessing.standardization import learn_scales, read_scales
from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing

_log = logging.getLogger(__name__)


class Conversion:
    """A directory in which arrays are made.

    Args:
        directory: directory for the arrays, ``vocabularies/`` and, meanwhile, ``columns/``
            and ``expansions/``.
        options: options of the data.
    """

    def __init__(self, directory: Path, options: Options):
        self.directory = directory
        self.options = options

    def stage(
        self, paths: Sequence[Path], dropped: int = 0, row_split: RowSplit | None = None
    ) -> list[Staged]:
        """Parses files.

        Args:
            paths: the files.
            dropped: number of files, from the first one, whose negative examples are sampled.
            row_split: rule that gives each row its split, as for `Source`.

        Raises:
            UserError: a file doesn't match the schema, or a column has another type in another
                file.
        """
        files, before = [], 0
        for number, path in enumerate(paths):
            _log.info("reading %s", path)
            source = Source(
                path, self.options, number, number < dropped, row_split=row_split, before=before
            )
            file = stage(source, self.directory / "columns" / str(number))
            before += file.rows + file.skipped + file.dropped
            files.append(file)
        if row_split:
            row_split.check_rows(before)
        self._check_types(paths, files, self.options.schema.owners)
        return files

    def learn(
        self,
        files: Sequence[Staged],
        training: Sequence[int],
        known: tuple[Path, str] | None,
    ) -> list[int]:
        """Makes the vocabularies, and the scales of numbers; returns the rows of each table.

        Args:
            files: all staged files.
            training: number of rows of each file, from the first one, that are for training.
            known: directory and fingerprint of the data whose vocabularies these continue; None to
                begin with empty ones.

        Raises:
            UserError: values can't be numbered; the known data were replaced by others.
        """
        rows, schema = [], self.options.schema
        for i in schema.owners:
            path, name = self._vocabulary(i), schema.categorical[i]
            if not path.exists():
                _log.info("vocabulary of %s", name)
                earlier = known and _read_known(path.name, *known)
                try:
                    learned = self._learned(i, files, training, earlier)
                except UserError as error:
                    raise UserError(f"column {name}: {error}") from error
                with replacing(path) as temporary, writing(path):
                    learned.write_parquet(temporary)
            rows.append(vocabulary.rows_needed(pl.scan_parquet(path, glob=False)))
        scans = [file.scan() for file in files]
        learn_scales(self.directory, schema, scans, training, known and known[0])
        if known:
            check_unchanged(*known)
        return self.options.table_rows(rows)

    def write(
        self, files: Sequence[Staged], days: Sequence[Day], rows: Sequence[int]
    ) -> dict[str, Any]:
        """Maps values to ids and writes the arrays of each day, for tables with so many rows.

        Returns:
            The notes of all files of ids, see `id_ranges`.
        """
        columns = range(len(self.options.schema.categorical))
        tables = expansions(self.options, rows, self.directory / "expansions")
        vocabularies, notes = [self._vocabulary(i) for i in columns], {}
        scales = read_scales(self.directory, self.options.schema)
        for number, file in enumerate(files):
            parts = len(file.ranges)
            encoders = [
                Encoder(file, self.options, vocabularies, columns, rows.stop, parts)
                for rows in file.ranges
            ]
            for i, day in enumerate(days):
                if day.file == number:
                    _log.info("arrays of day %d", i)
                    parts_of_day = (i, day, file, self.options, encoders, tables, scales)
                    notes |= write_day(self.directory, *parts_of_day)
        written = [DayFiles.map(self.directory, i) for i in range(len(days))]
        return complete_notes(written, self.options.lengths, notes)

    def _vocabulary(self, column: int) -> Path:
        owner = self.options.schema.owners[column]
        return self.directory / VOCABULARIES / f"{owner}.parquet"

    def _learned(
        self,
        column: int,
        files: Sequence[Staged],
        training: Sequence[int],
        known: pl.DataFrame | None,
    ) -> pl.DataFrame:
        options, lengths = self.options, [file.rows for file in files]

        def all_rows(column: int) -> list[pl.LazyFrame]:
            return [file.scan().select(raw_values(column, options)) for file in files]

        values = all_rows(column)
        if options.compatible == "reference":
            return vocabulary.learn_in_order(values, lengths)
        if options.compatible == "torchrec":
            table = vocabulary.learn_in_order(values, lengths, 2, options.min_count)
            limit = options.modulus(column)
            return table.with_columns(pl.col("id") % limit) if limit else table
        sharing = [i for i, owner in enumerate(options.schema.owners) if owner == column]
        first_rows = [
            frame.head(count)
            for each in sharing
            for frame, count in zip(all_rows(each), training, strict=True)
            if count
        ]
        bins_of = options.schema.bins.get(options.schema.categorical[column])
        if bins_of:  # those that grow keep their bins
            counts = [count for count in training if count]
            return bins.learn(first_rows, counts, bins_of) if known is None else known
        return vocabulary.learn(first_rows, options.min_count, options.max_rows, known)

    def _check_types(
        self, paths: Sequence[Path], files: Sequence[Staged], owners: Sequence[int]
    ) -> None:
        """Checks that a column has one type in all files, and those of a shared vocabulary, too."""
        types = [file.scan().collect_schema() for file in files]
        schema = self.options.schema
        known: dict[int, tuple[Path, str, Any]] = {}  # the first type of each vocabulary
        for i, name in enumerate(schema.categorical):
            for path, found in zip(paths, types, strict=True):
                kind = found[f"c{i}"]
                if kind in (pl.Null, pl.List(pl.Null)):
                    continue
                before, column, first = known.setdefault(owners[i], (path, name, kind))
                if not logs.same_values(first, kind):
                    other = "" if column == name else f"{name}, which shares its vocabulary, is "
                    raise UserError(
                        f"column {column} is {first} in {before}, but {other}{kind} in {path}; "
                        f"give it one type"
                    )


def _read_known(name: str, directory: Path, fingerprint: str) -> pl.DataFrame:
    found = vocabulary.read_whole(directory / VOCABULARIES / name)
    # For each of them, as what is learned from it stays if the call is repeated.
    check_unchanged(directory, fingerprint)
    return found

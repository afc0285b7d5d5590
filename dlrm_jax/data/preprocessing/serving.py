"""Maps new logs through existing vocabularies, in memory, for prediction."""

from __future__ import annotations

import collections
import copy
import dataclasses
import math
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.metadata import METADATA, VOCABULARIES, Metadata, check_unchanged
from dlrm_jax.data.multi_hot import expand
from dlrm_jax.data.preprocessing import few_rows, logs
from dlrm_jax.data.preprocessing.columns import label_arrays, normalize_columns, transform_dense
from dlrm_jax.data.preprocessing.encoding import encode_column, expansions
from dlrm_jax.data.preprocessing.hashed_values import group_codes
from dlrm_jax.data.preprocessing.headers import check_headers, optional_columns
from dlrm_jax.data.preprocessing.hexadecimal import from_hexadecimal
from dlrm_jax.data.preprocessing.loaded_vocabulary import LoadedVocabulary
from dlrm_jax.data.preprocessing.missing_values import check_missing_values
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.sources import Source
from dlrm_jax.data.preprocessing.standardization import SCALES, Scales, read_scales
from dlrm_jax.data.preprocessing.unseen_values import UnseenValues
from dlrm_jax.errors import UserError

_PLACES = 1 << 24  # of bags that are encoded at a time, 4 bytes each


class Encoded(NamedTuple):
    """Consecutive rows of a log.

    Attributes:
        examples: dense features and ids; a label is NaN where there is none. With the weights (NaN
            where one is malformed) and groups of the schema, if all files have them.
        keys: the columns that are passed through.
    """

    examples: Examples
    keys: pl.DataFrame


class LogEncoder:
    """Gives logs the ids and dense features that preprocessing would, with the same functions.

    The vocabularies are in memory, so that a row takes milliseconds.

    Args:
        prepared: directory with ``metadata.json`` and ``vocabularies/``.
        fingerprint: fingerprint of the data that it must be of.

    Attributes:
        metadata: description of the directory.
        options: options of the data, without what prediction doesn't need.
        types: type of each categorical column's values in its vocabulary.

    Raises:
        UserError: the directory can't be read, is of other data, or its dense features aren't
            defined for other rows; multi-hot tables can't be written.
    """

    def __init__(self, prepared: Path, fingerprint: str):
        self.metadata = Metadata.read(prepared)
        self.options = serving_options(self.metadata)
        self._prepared = prepared
        self._trained = Options.from_json(self.metadata.made_from["options"]).schema
        owners = self.options.schema.owners
        loaded = {
            owner: LoadedVocabulary(prepared / VOCABULARIES / f"{owner}.parquet")
            for owner in sorted(set(owners))
        }
        schema = self.options.schema
        binned = [name in schema.bins for name in schema.categorical]
        self._entries = [
            loaded[owner].all_entries if has_bins else loaded[owner].entries
            for owner, has_bins in zip(owners, binned, strict=True)
        ]
        self.types: dict[str, Any] = {
            name: loaded[owner].dtype
            for name, owner in zip(schema.categorical, owners, strict=True)
        }
        self._scales = read_scales(prepared, schema)
        # After the last of several files: another process may have replaced the directory.
        check_unchanged(prepared, fingerprint)
        torchrec = self.options.compatible == "torchrec"
        self._smallest = _smallest(self.metadata, prepared) if torchrec else 0.0
        self._expansions = self._multi_hot_tables() if self.options.multi_hot_sizes else []

    @property
    def columns(self) -> list[str]:
        """The columns that rows must have."""
        return self.options.schema.unlabelled_columns

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, the main one first."""
        return tuple(self.metadata.labels)

    def unseen_values(self) -> UnseenValues:
        """Counts of values that training hadn't."""
        return UnseenValues.of(self.metadata)

    @property
    def scales(self) -> Scales:
        """The scales of the dense columns that are standardized."""
        return self._scales

    def only(self, columns: Collection[str]) -> LogEncoder:
        """An encoder of some of the categorical columns, without dense features.

        Each column's ids depend on its own values alone, so they are the same; but for ids of other
        programs and multi-hot ones, which have settings for each column and no such encoder.
        """
        schema = self.options.schema
        places = [i for i, name in enumerate(schema.categorical) if name in columns]
        schema = dataclasses.replace(
            schema,
            categorical=tuple(schema.categorical[i] for i in places),
            dense=(),
            dense_transform="log",
            bag_lengths={x: length for x, length in schema.bag_lengths.items() if x in columns},
            bins={x: count for x, count in schema.bins.items() if x in columns},
            shared={},
        )
        other = copy.copy(self)
        other.options = dataclasses.replace(self.options, schema=schema)
        other._entries, other._scales = [self._entries[i] for i in places], Scales()
        return other

    def rows(self, frame: pl.DataFrame, name: str) -> Examples:
        """Encodes rows in memory; their labels, weights and times aren't read.

        Args:
            frame: rows with the columns of the schema. Values of Criteo's categorical columns may
                be numbers, or hexadecimal text as in its files.
            name: name of the rows for messages.

        Raises:
            UserError: a column is missing or has another type, or a value is malformed; the
                message names column and row, from 0.
        """
        schema, name = self.options.schema, f"{name} (from 0)"
        logs.check_columns(name, schema, frame.schema, without_label=True, rows=frame)
        frame = few_rows.select(frame, self.columns)
        if schema.layout == "criteo":
            frame = from_hexadecimal(name, schema, frame)
        frame = logs.unlabelled_rows(name, schema, frame, 0)
        return self._encode(normalize_columns(frame, self.options, name, 0), name)

    def files(self, paths: Sequence[Path], keys: Sequence[str] = ()) -> Iterator[Encoded]:
        """Encodes files chunk by chunk; memory doesn't grow with them.

        Args:
            paths: files of the kind that the directory was made from; labels, sample weights and
                timestamps may be missing.
            keys: columns to pass through.

        Raises:
            UserError: a file can't be read or is malformed, or is in MLPerf's binary form and the
                data of training had missing values, which it can't tell from 0.
        """
        types = check_headers(paths, self.options, keys)
        weight = [self._trained.weight] if self._trained.weight else []
        measured = optional_columns(paths, self.options, [*weight, *self._trained.groups])
        check_missing_values(paths, [], self.options, self._prepared)
        return self._chunks(paths, types, measured)

    def _chunks(
        self, paths: Sequence[Path], keys: dict[str, Any], measured: Sequence[str]
    ) -> Iterator[Encoded]:
        step = max(1, _PLACES // sum(self.options.lengths))
        for number, path in enumerate(paths):
            read = tuple(dict.fromkeys([*keys, *measured]))
            source = Source(path, self.options, labelled=False, keys=read)
            missing: collections.Counter[str] = collections.Counter()
            first_row = 1
            for _, parse in source.chunks():
                chunk = parse()
                nulls = chunk.frame.select(pl.all().null_count())
                missing.update(nulls.row(0, named=True))
                for start in range(0, len(chunk.frame), step):
                    rows, passed = (x.slice(start, step) for x in (chunk.frame, chunk.keys))
                    examples = self._encode(rows, place=str(path), first_row=first_row)
                    examples = self._measured(examples, passed.select(measured))
                    yield Encoded(examples, passed.select(list(keys)).cast(pl.Schema(keys)))
                    first_row += len(rows)
            counts = [missing if i == number else {} for i in range(len(paths))]
            check_missing_values(paths, counts, self.options, self._prepared)

    def _measured(self, examples: Examples, columns: pl.DataFrame) -> Examples:
        """Examples with the weights and groups that are among these columns."""
        missing = pl.col(pl.String).replace(dict.fromkeys(self.options.csv_missing))
        columns = columns.with_columns(missing)
        groups = {x.name: group_codes(x) for x in columns if x.name != self._trained.weight}
        weights = None
        if self._trained.weight in columns.columns:
            found = columns[self._trained.weight].cast(pl.Float32, strict=False).to_numpy()
            weights = np.where((found >= 0) & (found < np.inf), found, np.nan).astype(np.float32)
        return dataclasses.replace(examples, sample_weights=weights, groups=groups)

    def _multi_hot_tables(self) -> list[np.ndarray]:
        try:
            with tempfile.TemporaryDirectory(prefix="dlrm_jax-") as scratch:
                tables = expansions(self.options, self.metadata.table_rows, Path(scratch))
                # They stay readable when their names are gone.
                return [np.load(path, mmap_mode="r") for path in tables]
        except OSError as error:
            raise UserError(
                f"multi-hot tables need a writable temporary directory: {error}; name one with "
                f"room for them in the environment variable TMPDIR"
            ) from error

    def _encode(
        self, rows: pl.DataFrame, name: str | None = None, place: str = "", first_row: int = 0
    ) -> Examples:
        """Arrays of rows as `columns` describes them, as `day_arrays` writes them.

        Args:
            rows: rows.
            name: name of the rows for messages, if these are all.
            place: name of the file that these are some rows of.
            first_row: number of the first of them there.
        """
        del place, first_row  # for encoders that refuse values; a vocabulary has an id for any
        names = [f"d{i}" for i in range(len(self.options.schema.dense))]
        dense = np.empty((len(rows), 0), np.float32)
        if names:
            dense = few_rows.select(rows, names)
            dense = transform_dense(dense, self.options, self._smallest, self._scales)
        bags = [
            encode_column(rows, i, self.options, entries, name)
            for i, entries in enumerate(self._entries)
        ]
        if self._expansions:
            pairs = zip(bags, self._expansions, strict=True)
            bags = [expand(ids[:, 0], table) for ids, table in pairs]
        labels = label_arrays(rows, self.options.schema)
        return Examples(np.ascontiguousarray(dense), np.concatenate(bags, axis=1), labels)


def files_of(metadata: Metadata) -> list[str]:
    """Names of the files that a `LogEncoder` reads beside the description.

    Raises:
        UserError: the description isn't one.
    """
    schema = serving_options(metadata).schema
    names = [f"{VOCABULARIES}/{owner}.parquet" for owner in sorted({*schema.owners})]
    return [*names, SCALES] if schema.standardized else names


def serving_options(metadata: Metadata) -> Options:
    """The options of prepared data, as they are for rows that get a prediction each."""
    trained = Options.from_json(metadata.made_from["options"])
    schema = dataclasses.replace(trained.schema, weight=None, timestamp=None, groups=())
    unread: dict[str, Any] = {"on_bad_line": "stop", "drop_negatives": 0.0, "split": ""}
    return dataclasses.replace(trained, schema=schema, **unread)


def _smallest(metadata: Metadata, prepared: Path) -> float:
    """The smallest integer of training, to which TorchRec's dense features are relative."""
    smallest = set(metadata.smallest)
    if not smallest or not all(map(math.isfinite, smallest)):
        raise UserError(
            f"{prepared / METADATA} is damaged: smallest: expected a finite number for each file, "
            f"got {metadata.smallest}; prepare the data again"
        )
    if len(smallest) > 1:
        raise UserError(
            f"TorchRec's dense features are relative to the smallest integer of each file, which "
            f"was {', '.join(map(str, metadata.smallest))} in training: of others they aren't "
            f"defined; prepare training data with our own transform"
        )
    return smallest.pop()

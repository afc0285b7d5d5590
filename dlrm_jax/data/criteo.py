"""Criteo Kaggle's click logs: from one raw text file to a data set, prepared once and cached."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock

from dlrm_jax.data import cache
from dlrm_jax.data.arrays import Dataset, Examples
from dlrm_jax.data.columns import Columns
from dlrm_jax.data.criteo_text import BLOCK_BYTES, CATEGORICALS, INTEGERS, read_blocks
from dlrm_jax.data.vocabulary import Vocabulary
from dlrm_jax.errors import UserError

DAYS = 7
"""The file holds seven days in order of time; where one ends isn't marked."""

_ROWS_PER_BLOCK = 1 << 18

_log = logging.getLogger(__name__)


def load_criteo(
    path: str | os.PathLike[str], cache_dir: str | os.PathLike[str], min_count: int = 1
) -> Dataset:
    """Loads a raw file in Criteo Kaggle's layout, through a cache of prepared arrays.

    A line holds a label, 13 integers and 26 hexadecimal categoricals, tab-separated. The file is
    cut into seven "days" of equal length, as the DLRM paper's implementation does: six for
    training, the first half of the seventh for test, the second for validation. Dense features are
    log(x + 1), where missing and negative integers count as 0. Ids are rows of one table per
    feature: 0 for values that the training part doesn't hold often enough, 1 for empty fields, then
    the values of the training part by descending frequency.

    Preparing takes memory in proportion to one column, not to the file. Later calls map the arrays
    from `cache_dir`, as long as the file and the options are the same.

    Args:
        path: The raw file, such as Kaggle's train.txt.
        cache_dir: Where prepared arrays are kept; needs about 1.5 times the size of the file.
        min_count: Values that the training part holds less often share id 0.

    Raises:
        UserError: If a line can't be read (names file, line and column), there are too few lines to
            split, an argument is wrong or the cache can't be written.
    """
    path, cache_dir = Path(path), Path(cache_dir)
    options = {"min_count": min_count, "days": DAYS}
    if min_count < 1:
        raise UserError(f"min_count must be at least 1 (1 keeps every value), got {min_count}.")
    size, mtime_ns = _stat(path)
    entry = cache_dir / f"{path.stem}-{_digest([str(path.resolve()), options], 8)}"
    source = f"Criteo file {path}, values seen at least {min_count} times in training"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        # Two processes that need the same entry: the second waits, then reads.
        with FileLock(f"{entry}.lock"):
            metadata = _valid_metadata(entry, path, size, mtime_ns, options)
            dataset = metadata and cache.load(entry, metadata, source)
            if not dataset:
                _log.info("Preparing %s in %s", path, entry)
                with cache.new_entry(entry) as directory:
                    _prepare(path, directory, size, mtime_ns, options)
                metadata = cache.Metadata.read(entry)
                dataset = metadata and cache.load(entry, metadata, source)
    except OSError as error:
        raise UserError(
            f"cannot prepare {path} in the cache directory {cache_dir}: {error}. It must be "
            "writable and have room for about 1.5 times the size of the file "
            f"({1.5 * size / 2**30:.1f} GiB); free some, or choose another directory."
        ) from error
    if not dataset:
        raise UserError(
            f"the arrays just written to {entry} can't be read back; is another program changing "
            "files there? Choose another cache directory."
        )
    return dataset


def kaggle_split(lines: int) -> dict[str, slice]:
    """Cuts line numbers (from 0) as described at `load_criteo`.

    The first days are one line longer where `lines` isn't a multiple of seven, and test is where
    the last day's number of lines is odd, as in the DLRM paper's implementation.

    Raises:
        UserError: If a split would be empty.
    """
    last_day = lines // DAYS
    if last_day < 2:
        raise UserError(
            f"a Criteo file needs at least {2 * DAYS} lines to be split into {DAYS} days (six to "
            f"train, one for test and validation), got {lines}."
        )
    train_end = lines - last_day
    test_end = train_end + (last_day + 1) // 2
    return {
        "train": slice(0, train_end),
        "test": slice(train_end, test_end),
        "validation": slice(test_end, lines),
    }


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of change of a file that can be read."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise UserError(
            f"cannot read the Criteo file {path}: {error.strerror}. Give the path of a raw text "
            "file such as Kaggle's train.txt."
        ) from error
    return status.st_size, status.st_mtime_ns


def _valid_metadata(
    entry: Path, path: Path, size: int, mtime_ns: int, options: dict[str, int]
) -> cache.Metadata | None:
    """The description of an entry, if it was made from these bytes with these options."""
    metadata = cache.Metadata.read(entry)
    if metadata is None or (metadata.size, metadata.options) != (size, options):
        return None
    if metadata.mtime_ns == mtime_ns:
        return metadata
    with path.open("rb") as file:  # copied or touched, perhaps not changed
        content_hash = hashlib.file_digest(file, "blake2b").hexdigest()
    if metadata.content_hash != content_hash:
        return None
    metadata = dataclasses.replace(metadata, mtime_ns=mtime_ns)
    with contextlib.suppress(OSError):  # saves hashing next time, no more
        metadata.write(entry)
    return metadata


def _prepare(
    path: Path, directory: Path, size: int, mtime_ns: int, options: dict[str, int]
) -> None:
    """Writes the arrays and the description of an entry."""
    content = hashlib.blake2b()
    raw = directory / "columns"
    columns = Columns.write(raw, read_blocks(path, content.update, BLOCK_BYTES))
    if _stat(path) != (size, mtime_ns):
        raise UserError(f"{path} was changed while it was read; try again when it is complete.")
    splits = kaggle_split(len(columns))
    vocabularies = []
    for feature in range(len(CATEGORICALS)):
        values, missing = columns.categorical(feature, splits["train"])
        vocabularies.append(Vocabulary.learn(values[~missing], options["min_count"]))
    for split, rows in splits.items():
        _write_split(directory, split, columns, rows, vocabularies)
    shutil.rmtree(raw)
    cache.Metadata(
        size=size,
        mtime_ns=mtime_ns,
        content_hash=content.hexdigest(),
        options=options,
        table_rows=tuple(vocabulary.rows for vocabulary in vocabularies),
        bag_lengths=(1,) * len(CATEGORICALS),
        examples={split: rows.stop - rows.start for split, rows in splits.items()},
        fingerprint=_digest([content.hexdigest(), options], 16),
    ).write(directory)


def _write_split(
    directory: Path, split: str, columns: Columns, rows: slice, vocabularies: list[Vocabulary]
) -> None:
    examples = rows.stop - rows.start
    with cache.SplitWriter(directory, split, examples, len(INTEGERS), len(CATEGORICALS)) as writer:
        for start in range(rows.start, rows.stop, _ROWS_PER_BLOCK):
            block = slice(start, min(start + _ROWS_PER_BLOCK, rows.stop))
            ids = np.empty((block.stop - start, len(CATEGORICALS)), np.int32)
            for feature, vocabulary in enumerate(vocabularies):
                ids[:, feature] = vocabulary.encode(*columns.categorical(feature, block))
            writer.append(Examples(columns.dense[block], ids, columns.labels[block]))


def _digest(content: object, size: int) -> str:
    text = json.dumps(["criteo-kaggle", cache.SCHEMA_VERSION, content])
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()

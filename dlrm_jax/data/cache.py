"""Prepared data sets on disk: arrays of each split and a description, complete or not there."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.data.npy import ArrayWriter
from dlrm_jax.errors import UserError

SCHEMA_VERSION = 1
"""Raise it when the layout on disk, or the meaning of its numbers, changes."""

SPLITS = ("train", "validation", "test")
_METADATA = "metadata.json"


@dataclass(frozen=True)
class Metadata:
    """What an entry holds and what it was made from.

    Attributes:
        size: Bytes of the source file.
        mtime_ns: When the source file was last changed, in nanoseconds.
        content_hash: Hash of all its bytes.
        options: Everything else that the arrays depend on.
        table_rows: As in `Dataset`.
        bag_lengths: As in `Dataset`.
        examples: Number of examples per split.
        fingerprint: As in `Dataset`.
        schema_version: `SCHEMA_VERSION` of the code that wrote the entry.
    """

    size: int
    mtime_ns: int
    content_hash: str
    options: dict[str, int]
    table_rows: tuple[int, ...]
    bag_lengths: tuple[int, ...]
    examples: dict[str, int]
    fingerprint: str
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def read(cls, entry: Path) -> "Metadata | None":
        """Reads the description of an entry; None if there isn't one that this code understands."""
        try:
            fields = json.loads((entry / _METADATA).read_text())
            fields["table_rows"] = tuple(fields["table_rows"])
            fields["bag_lengths"] = tuple(fields["bag_lengths"])
            metadata = cls(**fields)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
            return None
        return metadata if metadata.schema_version == SCHEMA_VERSION else None

    def write(self, entry: Path) -> None:
        """Writes or replaces the description of an entry in one step."""
        temporary = entry / f"{_METADATA}.partial"
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        temporary.replace(entry / _METADATA)


class SplitWriter:
    """Writes the three arrays of one split block by block.

    Args:
        entry: Directory of the entry.
        split: One of `SPLITS`.
        examples: Number of examples that will be appended, N.
        dense: Dense features per example.
        ids: Ids per example.
    """

    def __init__(self, entry: Path, split: str, examples: int, dense: int, ids: int):
        with ExitStack() as stack:
            dense_path, ids_path, labels_path = _paths(entry, split)
            self._dense = stack.enter_context(
                ArrayWriter(dense_path, (examples, dense), np.float32)
            )
            self._ids = stack.enter_context(ArrayWriter(ids_path, (examples, ids), np.int32))
            self._labels = stack.enter_context(ArrayWriter(labels_path, (examples,), np.float32))
            self._stack = stack.pop_all()

    def append(self, block: Examples) -> None:
        """Writes the next examples."""
        self._dense.append(block.dense)
        self._ids.append(block.ids)
        self._labels.append(block.labels)

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


@contextmanager
def new_entry(entry: Path) -> Iterator[Path]:
    """Gives a directory to write to, which becomes `entry` when the block ends without an error.

    The caller holds the entry's lock. An earlier entry is replaced, arrays that are mapped from it
    stay valid. After an error nothing is left; after a kill, a directory that nobody reads and that
    the next call removes.
    """
    partial = entry.with_name(f"{entry.name}.partial")
    replaced = entry.with_name(f"{entry.name}.replaced")
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if entry.exists():
            entry.replace(replaced)
        partial.replace(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def load(entry: Path, metadata: Metadata, source: str) -> Dataset | None:
    """Maps the arrays of an entry into memory, read-only.

    Args:
        entry: Directory of the entry.
        metadata: Its description.
        source: The data set's one line for people.

    Returns:
        The data set, or None if files are missing, cut short or don't fit the description.
    """
    try:
        splits = {}
        for name in SPLITS:
            dense, ids, labels = (np.load(path, mmap_mode="r") for path in _paths(entry, name))
            splits[name] = Split((Examples(dense, ids, labels),))
            if len(labels) != metadata.examples[name]:
                return None
        return Dataset(
            **splits,
            table_rows=metadata.table_rows,
            bag_lengths=metadata.bag_lengths,
            fingerprint=metadata.fingerprint,
            source=source,
        )
    except (FileNotFoundError, EOFError, KeyError, ValueError, UserError):
        return None


def _paths(entry: Path, split: str) -> tuple[Path, Path, Path]:
    return (
        entry / f"{split}_dense.npy",
        entry / f"{split}_sparse.npy",
        entry / f"{split}_labels.npy",
    )

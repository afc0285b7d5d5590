"""A delta: what an artifact's rows and layers have become some steps later, as a small directory.

``delta.json`` describes it. The other files have no headers: numbers of rows, the bytes of these
rows as the artifact's tables have them, and the arrays of the dense model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgspec
import numpy as np
import xxhash
from jaxtyping import Int32, UInt8

from dlrm_jax.artifact.delta_keys import KEYS, UnfitError, changes_of, records_of
from dlrm_jax.artifact.dense_note import noted_fields
from dlrm_jax.artifact.manifest import MANIFEST, Manifest
from dlrm_jax.artifact.notes import FileNote, LongCount, Positive
from dlrm_jax.artifact.row_formats import row_bytes
from dlrm_jax.artifact.signed_text import is_signed, signed_text
from dlrm_jax.dynamic_ids.keys import KeyChanges
from dlrm_jax.errors import DamagedDeltaError, UserError

FORMAT = 2
"""Number of the format. It changes with what a reader mustn't leave out.

Format 2 has the file `KEYS`. A delta of an artifact whose rows have no keys is written as format 1.
"""

DELTA = "delta.json"
NUMBERS, ROWS, LAYERS = FILES = "numbers.int32", "rows.bytes", "layers.bytes"

Rows = tuple[Int32[np.ndarray, " n"], UInt8[np.ndarray, "n b"]]
"""Numbers of rows, ascending, and their bytes in the row format of the table."""


@dataclasses.dataclass(frozen=True)
class RowsNote:
    """The rows of a table in a delta.

    Attributes:
        table: name of the table.
        rows: number of its rows that the delta has.
    """

    table: str
    rows: Positive


@dataclasses.dataclass(frozen=True)
class DeltaNote:
    """The description of a delta.

    Attributes:
        number: number of the delta, from 1 on.
        step: number of training steps of the state that it leads to.
        written: time when that state was taken, in seconds since 1970.
        base: hash of the manifest of the artifact that the first delta changes.
        before: hash of the description of the delta before; of the first one, ``base``.
        tables: tables of which the files have rows, one after the other.
        files: size and checksum of the other files, by name.
        maps: maps of which the file of keys has rows, by the name of the first table, one after the
            other; None if the artifact's rows have no keys.
    """

    number: Positive
    step: LongCount
    written: float
    base: str
    before: str
    tables: tuple[RowsNote, ...]
    files: dict[str, FileNote]
    maps: tuple[RowsNote, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Delta:
    """A delta in memory.

    Attributes:
        note: description.
        content: hash of the description, which the next delta names.
        rows: changed rows by table.
        layers: arrays of the dense model by name, all of them.
        keys: changed ids of rows by map.
    """

    note: DeltaNote
    content: str
    rows: Mapping[str, Rows]
    layers: Mapping[str, np.ndarray]
    keys: Mapping[str, KeyChanges]


def hash_of(path: Path) -> str:
    """The hash of a file that describes others, by which a chain names it."""
    return xxhash.xxh3_128(path.read_bytes()).hexdigest()


def write_delta(
    directory: Path,
    note: DeltaNote,
    rows: Mapping[str, Rows],
    layers: Mapping[str, np.ndarray],
    keys: Mapping[str, KeyChanges] | None = None,
) -> tuple[DeltaNote, str]:
    """Writes a delta into an empty directory; returns its description, and the hash of that.

    Args:
        directory: directory, which gets its name when all is written.
        note: description without tables and files.
        rows: changed rows by table.
        layers: arrays of the dense model, in the order of the manifest.
        keys: changed ids of rows by map; None if the artifact's rows have no keys.
    """
    given = {name: own for name, own in rows.items() if len(own[0])}
    parts = {
        NUMBERS: [numbers.astype("<i4") for numbers, _ in given.values()],
        ROWS: [own for _, own in given.values()],
        LAYERS: [*layers.values()],
    }
    maps = None
    if keys is not None:
        changed = {name: own for name, own in keys.items() if len(own.rows)}
        parts[KEYS] = [records_of(own) for own in changed.values()]
        maps = tuple(RowsNote(name, len(own.rows)) for name, own in changed.items())
    files = {}
    for name, arrays in parts.items():
        checksum, size = xxhash.xxh3_128(), 0
        with (directory / name).open("xb") as file:
            for array in arrays:
                content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                checksum.update(content.data)
                size += content.size
                file.write(content.data)
        files[name] = FileNote(size, checksum.hexdigest())
    tables = tuple(RowsNote(name, len(own[0])) for name, own in given.items())
    note = dataclasses.replace(note, tables=tables, files=files, maps=maps)
    return note, write_note(directory, note)


def write_note(directory: Path, note: DeltaNote) -> str:
    """Writes ``delta.json``; returns its hash."""
    fields = dataclasses.asdict(note, dict_factory=noted_fields)
    if note.maps is None:
        del fields["maps"]
    text = signed_text({"format": _format_of(note), **fields})
    (directory / DELTA).write_text(text, encoding="utf-8")
    return hash_of(directory / DELTA)


def read_note(directory: Path) -> tuple[DeltaNote, str]:
    """The description of a delta, and its hash.

    Raises:
        UserError: a later version wrote it.
        DamagedDeltaError: it isn't there, or isn't as it was written.
    """
    try:
        content = _read(directory / DELTA)
        number = msgspec.json.decode(content, type=_Format).format
        if number > FORMAT:
            raise UserError(
                f"{directory} has format {number}, this program reads {FORMAT}: a later version of "
                f"it wrote the delta; use that version"
            )
        if not is_signed(content.decode()):
            raise DamagedDeltaError(
                str(directory), DELTA, "its bytes aren't those that were written"
            )
        note = msgspec.json.decode(content, type=DeltaNote)
        if number != _format_of(note):
            raise DamagedDeltaError(str(directory), DELTA, f"it has format {number}")
    except OSError as error:
        raise DamagedDeltaError(str(directory), DELTA, f"it can't be read: {error}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedDeltaError(str(directory), DELTA, str(error)) from error
    files = FILES if note.maps is None else (*FILES, KEYS)
    if note.files.keys() != {*files}:
        raise DamagedDeltaError(str(directory), DELTA, f"expected the files {', '.join(files)}")
    return note, xxhash.xxh3_128(content).hexdigest()


def read_delta(directory: Path, manifest: Manifest) -> Delta:
    """Reads a delta and checks all of it; what is applied is what was checked.

    Args:
        directory: directory of the delta.
        manifest: manifest of the artifact that it changes.

    Raises:
        UserError: a later version wrote it.
        DamagedDeltaError: it isn't as it was written, or doesn't fit the artifact.
    """
    note, content = read_note(directory)
    numbers, rows, layers = (_checked(directory, name, note.files[name]) for name in FILES)
    noted = manifest.id_rows.maps if manifest.id_rows else ()
    try:
        if (note.maps is None) != (not noted):
            raise UnfitError("it has keys of rows, and the artifact none, or the reverse")
        keys = None if note.maps is None else _checked(directory, KEYS, note.files[KEYS])
        return Delta(
            note,
            content,
            dict(_rows(note, manifest, numbers, rows)),
            dict(_layers(manifest, layers)),
            changes_of([(x.table, x.rows) for x in note.maps or ()], noted, keys or b""),
        )
    except UnfitError as error:
        raise DamagedDeltaError(str(directory), DELTA, str(error)) from error


def _read(path: Path) -> bytes:
    """The bytes of a file of a delta; no link leads out of it, and a pipe would wait for ever."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError("expected a file, found none")
    return path.read_bytes()


def _checked(directory: Path, name: str, noted: FileNote) -> bytes:
    """The bytes of a file, which are those that were written."""
    try:
        content = _read(directory / name)
    except OSError as error:
        raise DamagedDeltaError(str(directory), name, f"it can't be read: {error}") from error
    if len(content) != noted.bytes:
        found = f"expected {noted.bytes:,} bytes, it has {len(content):,}"
        raise DamagedDeltaError(str(directory), name, found)
    if (found := xxhash.xxh3_128(content).hexdigest()) != noted.xxh3_128:
        raise DamagedDeltaError(
            str(directory), name, f"expected the checksum {noted.xxh3_128}, its bytes have {found}"
        )
    return content


def _rows(
    note: DeltaNote, manifest: Manifest, numbers: bytes, rows: bytes
) -> Iterator[tuple[str, Rows]]:
    """The rows of each table, checked."""
    tables, number, byte = {table.name: table for table in manifest.tables}, 0, 0
    seen: set[str] = set()
    for own in note.tables:
        if (table := tables.get(own.table)) is None or own.table in seen:
            raise UnfitError(f"table {own.table!r} is no table of the artifact, or there twice")
        seen.add(own.table)
        width, count = row_bytes(table.row_format, table.dim), own.rows
        if len(numbers) < 4 * (number + count) or len(rows) < byte + count * width:
            raise UnfitError(f"there are fewer rows of table {own.table!r} than {count:,}")
        found = np.frombuffer(numbers, "<i4", count, 4 * number)
        if found[0] < 0 or found[-1] >= table.rows or not np.all(found[1:] > found[:-1]):
            raise UnfitError(
                f"table {own.table!r}: expected ascending numbers of its {table.rows:,} rows"
            )
        yield (
            own.table,
            (found, np.frombuffer(rows, np.uint8, count * width, byte).reshape(count, width)),
        )
        number, byte = number + count, byte + count * width
    if len(numbers) != 4 * number or len(rows) != byte:
        raise UnfitError("there are more rows than those of its tables")


def _layers(manifest: Manifest, content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of the dense model, in the order of the manifest."""
    first = 0
    for layer in manifest.layers:
        dtype: Any = jnp.dtype(layer.dtype)
        count = int(np.prod(layer.shape, dtype=np.int64))
        if len(content) < first + count * dtype.itemsize:
            raise UnfitError(f"there are fewer numbers of layer {layer.name!r} than {count:,}")
        array = np.frombuffer(content, dtype, count, first).reshape(layer.shape)
        yield layer.name, array
        first += array.nbytes
    if len(content) != first:
        raise UnfitError(f"{MANIFEST} of the artifact names other layers")


def _format_of(note: DeltaNote) -> int:
    return 1 if note.maps is None else 2


@dataclasses.dataclass(frozen=True)
class _Format:
    format: int

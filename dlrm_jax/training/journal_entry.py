"""One entry of a journal: a file of named arrays, with a checksum over all of it.

It has a magic number, the length of a description in JSON, the description, the bytes of the
arrays one after the other, and the XXH3 of all before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xxhash

from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing
from dlrm_jax.training.journal_files import UnreadableEntryError

FORMAT = 1
"""Number of the format."""

_MAGIC = b"dlrmjour"
_DIGEST = 16  # bytes

Name = tuple[str, ...]
"""What an array is: its kind, then what it is of."""

ROWS, VALUES, DENSE, HOST = "rows", "values", "dense", "host"
MAP, PLACES = "id_map", "id_map_places"


class DamagedEntryError(Exception):
    """An entry that isn't as it was written."""


class Entry(NamedTuple):
    """What has changed since the entry before.

    Attributes:
        number: number of the entry, from 1 on.
        step: number of training steps of the state that it leads to.
        base: hash of the metadata of the checkpoint that the first entry changes.
        before: checksum of the entry before; of the first one, ``base``.
        rows: number of rows of each table, by its name.
        notes: metadata of that state that its checkpoint would have, as JSON.
        arrays: arrays by name.
    """

    number: int
    step: int
    base: str
    before: str
    rows: Mapping[str, int]
    notes: Mapping[str, Any]
    arrays: Mapping[Name, np.ndarray]


def write_entry(path: Path, entry: Entry) -> str:
    """Writes an entry in one step, and replaces another of its name; returns its checksum.

    Raises:
        OSError: it can't be written.
    """
    described = [[name, str(x.dtype), list(x.shape)] for name, x in entry.arrays.items()]
    header = json.dumps({"format": FORMAT, **entry._asdict(), "arrays": described}).encode()
    checksum = xxhash.xxh3_128()
    with replacing(path) as temporary, temporary.open("xb") as file:

        def write(content: Any) -> None:
            checksum.update(content)
            file.write(content)

        write(_MAGIC + len(header).to_bytes(8, "little"))
        write(header)
        for array in entry.arrays.values():
            write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.write(checksum.digest())
    return checksum.hexdigest()


def read_entry(path: Path) -> tuple[Entry, str]:
    """Reads an entry and checks all of it; returns its checksum, too.

    Raises:
        DamagedEntryError: it isn't as it was written.
        FileNotFoundError: there is none.
        UnreadableEntryError: it can't be read just now.
        UserError: a later version wrote it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:  # no proof of damage: a later try may succeed
        raise UnreadableEntryError(path, error) from error
    whole = memoryview(content)[:-_DIGEST]
    checksum = xxhash.xxh3_128(whole)
    if content[: len(_MAGIC)] != _MAGIC or checksum.digest() != content[-_DIGEST:]:
        raise DamagedEntryError("its bytes aren't those that were written")
    start = len(_MAGIC) + 8
    end = start + int.from_bytes(content[start - 8 : start], "little")
    header = json.loads(content[start:end])
    if header.pop("format") > FORMAT:
        raise UserError(
            f"{path}: expected a journal of format {FORMAT}, got one of a later version of this "
            f"program; use that version"
        )
    arrays: dict[Name, np.ndarray] = {}
    for name, dtype, shape in header.pop("arrays"):
        of_type: Any = jnp.dtype(dtype)
        count = math.prod(shape)
        arrays[tuple(name)] = np.frombuffer(whole, of_type, count, end).reshape(shape)
        end += count * of_type.itemsize
    return Entry(**header, arrays=arrays), checksum.hexdigest()

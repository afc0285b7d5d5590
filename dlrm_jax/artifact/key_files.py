"""The ids of the rows of an artifact's tables, as files that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dlrm_jax.artifact.files import check_content, read_array
from dlrm_jax.artifact.id_notes import KeysNote
from dlrm_jax.artifact.notes import FileNote
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.dynamic_ids.key_index import KeyIndex
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.errors import DamagedArtifactError, UserError

DIRECTORY = "keys"
"""The directory of an artifact that has them."""


def write_keys(directory: Path, note: KeysNote, keys: Keys) -> None:
    """Writes the ids of the rows of a map.

    Args:
        directory: directory of the artifact.
        note: description of the map.
        keys: ids of the rows.
    """
    (directory / DIRECTORY).mkdir(exist_ok=True)
    write_npy(directory / note.keys, keys.keys)
    write_npy(directory / note.live, keys.live)


def load_keys(directory: Path, note: KeysNote) -> Keys:
    """The ids of the rows of a map, as copies in memory; their checksums aren't compared.

    Raises:
        DamagedArtifactError: a file can't be read, or has another array.
    """
    keys = read_array(directory, note.keys, np.uint64, (note.rows,))
    return Keys(np.array(keys), np.array(read_array(directory, note.live, np.bool_, (note.rows,))))


def read_keys(directory: Path, note: KeysNote, files: Mapping[str, FileNote]) -> KeyIndex:
    """The index of the ids of a map.

    Args:
        directory: directory of the artifact.
        note: description of the map.
        files: size and checksum of its files; those that aren't named yet aren't compared.

    Raises:
        DamagedArtifactError: a file isn't as it was written, or two rows have one id.
    """
    for name in (note.keys, note.live):
        if name in files:
            check_content(directory, name, files[name])
    try:
        return KeyIndex(load_keys(directory, note), note.defaults, note.seed)
    except DamagedArtifactError:
        raise
    except UserError as error:
        raise DamagedArtifactError(str(directory), note.keys, str(error)) from error

"""Arrays of a checkpoint that aren't on devices, as files of NumPy: ``host/NAME.npy``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import DamagedCheckpointError

DIRECTORY = "host"

_KEY = "host_arrays"


def save_host_arrays(checkpoint: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Writes arrays to a checkpoint that isn't complete yet.

    Args:
        checkpoint: directory of the checkpoint.
        arrays: arrays by name, which may be that of a file.

    Returns:
        What its metadata say of them: their checksums.
    """
    if not arrays:
        return {}
    (checkpoint / DIRECTORY).mkdir()
    for name, array in arrays.items():
        write_npy(checkpoint / DIRECTORY / f"{name}.npy", np.ascontiguousarray(array))
    return {_KEY: {name: _checksum(array) for name, array in arrays.items()}}


def load_host_arrays(checkpoint: Path, metadata: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads the arrays of `save_host_arrays`, by name; none of a checkpoint without.

    Args:
        checkpoint: directory of the checkpoint.
        metadata: its metadata.

    Raises:
        DamagedCheckpointError: one is missing, damaged, or not as it was written.
    """
    found: dict[str, np.ndarray] = {}
    for name, checksum in metadata.get(_KEY, {}).items():
        file = Path(DIRECTORY) / f"{name}.npy"
        try:
            found[name] = np.load(checkpoint / file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DamagedCheckpointError(str(checkpoint), f"{file}: {error}") from error
        if _checksum(found[name]) != checksum:
            raise DamagedCheckpointError(str(checkpoint), f"{file} has another checksum")
    return found


def _checksum(array: np.ndarray) -> str:
    content = np.ascontiguousarray(array)
    sums = xxhash.xxh3_128(f"{content.dtype} {content.shape}".encode())
    sums.update(content.reshape(-1).view(np.uint8).data)
    return sums.hexdigest()

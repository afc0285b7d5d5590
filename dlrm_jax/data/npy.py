"""NumPy files of any size, written in bounded memory."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Shaped


class ArrayWriter:
    """Writes an .npy file block by block.

    A full disk raises `OSError` here; stores to a memory map would end the process.

    Args:
        path: The file, replaced if it exists.
        shape: Shape of the whole array; the blocks appended must make it up.
        dtype: Type of its elements.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]):
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, block: Shaped[np.ndarray, "N ..."]) -> None:
        """Writes the next rows."""
        self._file.write(np.ascontiguousarray(block, self._dtype).data)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

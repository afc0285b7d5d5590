"""NumPy files of any size: written in bounded memory, read through memory maps."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped

from dlrm_jax.errors import UserError

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Header of a zip file's member: signature, then the lengths of its name and of the extra field."""


class BlockWriter:
    """Writes an array block by block, in the format of an .npy file.

    A full disk raises `OSError` here; stores to a memory map would end the process.

    Args:
        file: file open for writing, at the position where the array begins.
        shape: shape of the whole array; the blocks must add up to it.
        dtype: type of its elements.
    """

    def __init__(
        self, file: IO[bytes] | BufferedIOBase, shape: tuple[int, ...], dtype: type[np.generic]
    ):
        self._file, self._dtype = file, np.dtype(dtype)
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)

    def append(self, block: Shaped[np.ndarray, "N ..."]) -> None:
        """Writes the next rows."""
        self._file.write(np.ascontiguousarray(block, self._dtype).data)


class ArrayWriter(BlockWriter):
    """Writes an .npy file block by block; a context manager.

    Args:
        path: the file, replaced if it exists.
        shape: shape of the whole array; the blocks must add up to it.
        dtype: type of its elements.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]):
        super().__init__(path.open("wb"), shape, dtype)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class NpzWriter:
    """Writes an .npz file block by block, with the same bytes as `np.savez`; a context manager.

    Members aren't compressed, so that `map_npz` can map them.

    Args:
        path: the file, replaced if it exists.
    """

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w")

    @contextmanager
    def member(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> Iterator[BlockWriter]:
        """Context that writes one array; only one at a time.

        Args:
            name: name of the array, without ``.npy``.
            shape: shape of the whole array; the blocks must add up to it.
            dtype: type of its elements.

        Yields:
            The writer of the array.
        """
        # Sizes always have 64 bits, as from np.savez: a reader that knows where the data of a small
        # member begin finds those of a large one.
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as file:
            yield BlockWriter(file, shape, dtype)

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            self._zip.close()
        except (OSError, ValueError):
            if kind is None:
                raise
            # The error that ended the block has left it half-written, and is raised.
        finally:
            self._file.close()


def map_npz(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of an .npz file into memory, read-only; `np.load` would read them.

    The arrays aren't aligned, as members of a zip file begin anywhere. NumPy computes with such
    arrays, but many functions, `np.take` among them, first copy a whole one.

    Args:
        path: file written by `NpzWriter` or `np.savez`.

    Returns:
        The arrays by name, in the order of the file.

    Raises:
        UserError: the file can't be read, is damaged, or has a compressed member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _map_member(path, archive, info)
                for info in archive.infolist()
            }
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} can't be read as an .npz file: {error}; is it complete?"
        ) from error


def _map_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(
            f"{path}, member {info.filename}: expected an array that isn't compressed, so that it "
            f"can be mapped; write the file with np.savez instead of np.savez_compressed"
        )
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran_order, dtype = read_header(file)
            start = file.tell()
            if dtype.hasobject:
                raise ValueError("objects can't be mapped")
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}, member {info.filename}: expected an array in NumPy's format: {error}"
        ) from error
    expected = start + math.prod(shape) * dtype.itemsize
    if info.file_size != expected:
        raise UserError(
            f"{path}, member {info.filename}: expected {expected:,} bytes for a {dtype} array of "
            f"shape {shape}, got {info.file_size:,}; it is damaged, make the file again"
        )
    # The directory at the end of a zip file repeats the extra field, maybe with another length.
    with path.open("rb") as file:
        file.seek(info.header_offset)
        _, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    offset = info.header_offset + _LOCAL_HEADER.size + name + extra + start
    order = "F" if fortran_order else "C"
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order=order)

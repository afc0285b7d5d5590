"""NumPy files of any size: written in bounded memory, read through memory maps."""

from __future__ import annotations

import math
import struct
import tokenize
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

# What NumPy and `zipfile` raise for damaged files, besides OSError: headers are Python expressions.
_DAMAGED = (
    OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, SyntaxError,
    RecursionError, MemoryError, tokenize.TokenError, struct.error, zipfile.BadZipFile,
    NotImplementedError, RuntimeError,
)  # fmt: skip


class ArrayWriter:
    """Writer of an array in the format of an .npy file, chunk by chunk; a context manager.

    A full disk raises `OSError` here; stores to a memory map would end the process.

    Args:
        file: path of the file, replaced if it exists; or a file open for writing.
        shape: shape of the whole array; the chunks must add up to it.
        dtype: type of its elements.
    """

    def __init__(
        self,
        file: Path | IO[bytes] | BufferedIOBase,
        shape: tuple[int, ...],
        dtype: type[np.generic],
    ):
        self._file = file.open("wb") if isinstance(file, Path) else file
        self._dtype = np.dtype(dtype)
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, chunk: Shaped[np.ndarray, "N ..."]) -> None:
        """Writes the next rows."""
        self._file.write(np.ascontiguousarray(chunk, self._dtype).data)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def write_npy(path: Path, array: Shaped[np.ndarray, "..."]) -> None:
    """Writes an array as `np.save` does, whose error of a full disk doesn't say that it is full.

    Raises:
        OSError: the file can't be written.
    """
    with ArrayWriter(path, array.shape, array.dtype.type) as writer:
        writer.append(np.atleast_1d(array))


class NpzWriter(zipfile.ZipFile):
    """Writer of an .npz file with the same bytes as `np.savez`; a context manager.

    Members aren't compressed, so that `map_npz` can map them. An existing file is replaced.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w")

    @contextmanager
    def member(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> Iterator[ArrayWriter]:
        """Context that writes one array; only one at a time."""
        # Sizes always have 64 bits, as from np.savez: a reader that knows where the data of a small
        # member begin finds those of a large one.
        with self.open(f"{name}.npy", "w", force_zip64=True) as file:
            yield ArrayWriter(file, shape, dtype)


def map_npy(path: Path) -> np.ndarray:
    """Maps the array of an .npy file into memory, read-only.

    Raises:
        UserError: the file can't be read, is damaged, or holds objects.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except _DAMAGED as error:
        raise UserError(
            f"{path} can't be read as an .npy file: {error}; is it complete?"
        ) from error


def map_npz(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of an .npz file into memory, read-only; `np.load` would read them.

    The arrays aren't aligned, as members of a zip file begin anywhere. NumPy computes with such
    arrays, but many functions, `np.take` among them, first copy a whole one.

    Raises:
        UserError: the file can't be read, is damaged, or has a compressed member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _map_member(path, archive, info)
                for info in archive.infolist()
            }
    except UserError:
        raise
    except _DAMAGED as error:
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
    except _DAMAGED as error:
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

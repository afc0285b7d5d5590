"""Files mapped into memory without a file descriptor each: a model may have thousands of tables."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

_FAILED = ctypes.c_void_p(-1).value
# MAP_NORESERVE, which Python's module doesn't name.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


class _Mapping:
    """Mapped memory, until nobody uses it any more; NumPy reads ``__array_interface__``."""

    def __init__(self, address: int, size: int, unmap: Any, is_private: bool):
        self.__array_interface__ = {
            "data": (address, not is_private),  # whether it is read-only
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }
        # Not when Python ends: another thread may still read then.
        weakref.finalize(self, unmap, address, size).atexit = False


def map_file(path: str | Path, private: bool = False) -> UInt8[np.ndarray, " n"]:
    """The bytes of a file, read when they are needed first; read-only unless they are private.

    The array and its views keep the map. `mmap.mmap`, and so `np.memmap`, would keep an open file
    as long: processes may have 1,024 of them by default.

    Linux is asked for huge pages: with small ones, random reads of a large table also wait for the
    translation of addresses. ext4 on Linux 6.18 had them for files that were read this way, or
    written by some MiB at a time.

    Args:
        path: file, or its name.
        private: whether what is written into the array stays in this process and takes memory, page
            by page; pages that nothing is written into are those of the file.

    Raises:
        OSError: the file can't be read or mapped.
    """
    libc = _libc()
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:  # nothing can be mapped
            return np.empty(0, np.uint8)
        protection, kind = mmap.PROT_READ, mmap.MAP_SHARED
        if private:  # a table may be larger than memory, of which few pages are written into
            protection, kind = protection | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _NO_RESERVE
        address = libc.mmap(None, size, protection, kind, file.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    mapping = _Mapping(address, size, libc.munmap, private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        libc.madvise(address, size, mmap.MADV_HUGEPAGE)  # kernels without them refuse
    return np.asarray(mapping)


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [pointer, size, integer, integer, integer, ctypes.c_long]
    libc.mmap.restype = pointer
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = [pointer, size, integer]
    return libc

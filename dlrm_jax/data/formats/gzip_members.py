"""The members of a gzip file, one after the other."""

from __future__ import annotations

import io
import logging
import zlib
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_INPUT = 1 << 15  # what is behind a member is copied: much of it is slow where members are small
_PADDING = 1 << 16
_WITH_HEADER = 16 + zlib.MAX_WBITS


class GzipMembers(io.RawIOBase):
    """The uncompressed bytes of a gzip file.

    Zeros may fill the last block of a file, as on tapes, and Python's own reader skips them, any
    number of them and anywhere. A member that a disk has lost reads as zeros, too, and its rows
    would be missing without a word. So zeros between members are an error, and so are 64 KiB of
    them at the end. Fewer are a warning.

    Args:
        file: the compressed file.
        path: its name, for messages.
    """

    def __init__(self, file: Any, path: Path):
        self._file, self._path = file, path
        self._input = b""
        self._end = 0  # of the input, in the file
        self._member = zlib.decompressobj(_WITH_HEADER)

    def readable(self) -> bool:
        """True: it is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads bytes into a buffer; their number is 0 at the end.

        Raises:
            EOFError: the file is cut short.
            zlib.error: it is corrupt.
        """
        found = b""
        while not found:
            if self._member.eof:
                if not self._find_member():
                    return 0
                self._member = zlib.decompressobj(_WITH_HEADER)
            is_last = not self._input and not self._fill()
            found = self._member.decompress(self._input, len(buffer))
            self._input = self._member.unconsumed_tail or self._member.unused_data
            if is_last and not found and not self._member.eof:
                raise EOFError("it ends within a member")
        buffer[: len(found)] = found
        return len(found)

    def _fill(self) -> bool:
        self._input = self._file.read(_INPUT)
        self._end += len(self._input)
        return bool(self._input)

    def _find_member(self) -> bool:
        """Whether another member follows, at the beginning of the input."""
        zeros = 0
        while self._input[:1] in (b"", b"\0"):
            zeros += len(self._input)
            self._input = self._input.lstrip(b"\0")
            zeros -= len(self._input)
            if not self._input and not self._fill():
                break
        first = self._end - len(self._input) - zeros
        if zeros and (self._input or zeros >= _PADDING):
            raise zlib.error(f"{zeros:,} zeros from byte {first:,} on, where a member is expected")
        if zeros:
            _log.warning(
                "%s: %s zeros from byte %s to the end are taken for padding; if rows are missing, "
                "the file is damaged",
                self._path,
                f"{zeros:,}",
                f"{first:,}",
            )
        return bool(self._input)

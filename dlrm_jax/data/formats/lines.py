"""Reads texts with one example per line, in chunks of whole lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from dlrm_jax.errors import UserError

OnBadLine = Literal["stop", "skip"]
"""What happens on a malformed line: an error, or the line is left out."""

CHUNK_BYTES = 64 << 20
MAX_LINE_BYTES = 1 << 16  # a line of Criteo's has less than 600


def whole_lines(read: Callable[[int], bytes], path: Path, chunk_bytes: int) -> Iterator[bytes]:
    """Yields a text in chunks that end with a line feed, reading so many bytes at a time.

    Raises:
        UserError: a line is longer than a chunk and than every expected line.
    """
    rest: list[bytes] = []
    while data := read(chunk_bytes):
        end = data.rfind(b"\n") + 1
        if end:
            yield b"".join([*rest, memoryview(data)[:end]])  # one copy instead of two
            rest = []
        rest.append(data[end:])
        if sum(map(len, rest)) > max(MAX_LINE_BYTES, chunk_bytes):
            raise UserError(
                f"{path} has a line of more than {max(MAX_LINE_BYTES, chunk_bytes):,} bytes; is "
                f"it a text file with an example a line?"
            )
    if last := b"".join(rest):  # the file doesn't end with a line feed
        yield last + b"\n"


def decoded(content: bytes, path: Path, encoding: str, first_line: int = 1) -> str:
    """The text of whole lines, of which the first has the given number in the file.

    Raises:
        UserError: a byte isn't in the encoding; the message names its line.
    """
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        expected = encoding.removesuffix("-sig").upper()
        raise UserError(
            f"{path}, line {line}: expected {expected}, found the byte "
            f"{content[error.start]:02x} ({error.reason}); convert the file, for example with iconv"
        ) from error

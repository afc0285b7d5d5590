"""Texts with an example a line, in blocks of whole lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from dlrm_jax.errors import UserError

OnBadLine = Literal["stop", "skip"]
"""Whether malformed lines are an error or left out."""

BLOCK_BYTES = 64 << 20
MAX_LINE_BYTES = 1 << 16  # a line of Criteo's has less than 600


def whole_lines(read: Callable[[int], bytes], path: Path, block_bytes: int) -> Iterator[bytes]:
    """Yields a text in pieces that end with a line feed.

    Args:
        read: gives the next bytes of the text, none at its end.
        path: The file, for messages.
        block_bytes: Bytes read at a time.

    Raises:
        UserError: If a line is longer than any that is expected and longer than a block.
    """
    rest: list[bytes] = []
    while data := read(block_bytes):
        end = data.rfind(b"\n") + 1
        if end:
            yield b"".join([*rest, memoryview(data)[:end]])  # one copy instead of two
            rest = []
        rest.append(data[end:])
        if sum(map(len, rest)) > max(MAX_LINE_BYTES, block_bytes):
            raise UserError(
                f"{path} has a line of more than {max(MAX_LINE_BYTES, block_bytes):,} bytes; is "
                f"it a text file with an example a line?"
            )
    if last := b"".join(rest):  # the file doesn't end with a line feed
        yield last + b"\n"

"""JSON that ends with the checksum of all its other bytes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import msgspec
import xxhash

_CHECKSUM = "checksum"


@dataclasses.dataclass(frozen=True)
class _Checksum:
    checksum: str


def signed_text(content: dict[str, Any]) -> str:
    """The text of some content, with its checksum at the end."""
    text = json.dumps({**content, _CHECKSUM: ""}, indent=1, allow_nan=False) + "\n"
    line = f'"{_CHECKSUM}": "'
    before, _, after = text.rpartition(line)
    return f"{before}{line}{_hash(text)}{after}"


def is_signed(text: str) -> bool:
    """Whether a text is as `signed_text` gave it.

    Raises:
        msgspec.DecodeError: it is no JSON, or has no checksum.
    """
    noted = msgspec.json.decode(text, type=_Checksum).checksum
    begin, _, end = text.rpartition(f'"{noted}"')
    return noted == _hash(f'{begin}""{end}')


def _hash(text: str) -> str:
    return xxhash.xxh3_128(text.encode()).hexdigest()

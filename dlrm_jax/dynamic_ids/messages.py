"""Arrays as bytes, for messages between the processes of one run."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import numpy as np

_LENGTH = struct.Struct("<q")  # of the header, before it


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays of one dimension as bytes: a header in JSON, and the numbers.

    Args:
        arrays: arrays by name.
    """
    header = json.dumps([(name, x.dtype.str, len(x)) for name, x in arrays.items()]).encode()
    numbers = (np.ascontiguousarray(x).tobytes() for x in arrays.values())
    return b"".join([_LENGTH.pack(len(header)), header, *numbers])


def unpacked(message: bytes) -> dict[str, np.ndarray]:
    """The arrays of `packed`; they can't be written to.

    Args:
        message: bytes.
    """
    start = _LENGTH.size + _LENGTH.unpack_from(message)[0]
    found = {}
    for name, dtype, length in json.loads(message[_LENGTH.size : start]):
        found[name] = np.frombuffer(message, np.dtype(dtype), length, start)
        start += found[name].nbytes
    return found

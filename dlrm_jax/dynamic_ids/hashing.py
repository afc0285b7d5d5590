"""Ids of strings: XXH64 with seed 0 of their UTF-8, which other programs compute, too.

Two of n different strings have the same id with probability n² / 2^65 or less: 3 in 10⁸ for a
million strings, 3 in 10⁴ for 10⁸, 3 % for 10⁹. Such strings share a row, and nothing notices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import xxhash
from jaxtyping import Int64, UInt8, UInt64

from dlrm_jax.errors import UserError, shown
from dlrm_jax.native import string_hashes


def hash_strings(strings: Sequence[str]) -> UInt64[np.ndarray, " N"]:
    """The ids of strings.

    Args:
        strings: strings, [N]; they aren't normalized, so "é" has an id for each way to write it.

    Raises:
        UserError: one is no text, as half of a surrogate pair isn't.
    """
    try:
        encoded = [x.encode() for x in strings]
    except UnicodeEncodeError as error:
        raise UserError(
            f"strings: expected text, got {shown(error.object)}, which UTF-8 can't write"
        ) from None
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(x) for x in encoded], out=offsets[1:])
    return hash_utf8(np.frombuffer(b"".join(encoded), np.uint8), offsets)


def hash_utf8(
    data: UInt8[np.ndarray, " n"], offsets: Int64[np.ndarray, " _"]
) -> UInt64[np.ndarray, " _"]:
    """The ids of strings that lie one after the other, as in Arrow's ``large_string``.

    Args:
        data: bytes of all strings, [n].
        offsets: first byte of each string, and the end of the last one, [N + 1].

    Returns:
        Ids, [N].

    Raises:
        UserError: the offsets go down, or past the bytes.
    """
    if (
        not len(offsets)
        or offsets[0] < 0
        or offsets[-1] > len(data)
        or (np.diff(offsets) < 0).any()
    ):
        raise UserError(
            f"offsets: expected numbers from 0 to {len(data)} that don't decrease, one more than "
            f"strings, got {shown(offsets.tolist())}"
        )
    if string_hashes.available():
        return string_hashes.hash_strings(np.ascontiguousarray(data), np.ascontiguousarray(offsets))
    whole, bounds = data.tobytes(), itertools.pairwise(offsets.tolist())
    return np.array([xxhash.xxh64_intdigest(whole[i:j]) for i, j in bounds], np.uint64)

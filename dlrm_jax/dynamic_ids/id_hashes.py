"""Hashes of ids of 64 bits, for the map's own use: they decide rows, so they are fixed forever."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt64

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15

SLOT, SKETCH, DEFAULT, DRAW, PART = 1, 2, 3, 4, 5
"""The purposes of hashes, which must not depend on each other."""


def mix(x: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), one-to-one on 64 bits.

    Args:
        x: number of 64 bits.
    """
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def salt(seed: int, purpose: int) -> int:
    """What is xored to an id before it is mixed for a purpose.

    Args:
        seed: seed of the map.
        purpose: `SLOT`, `SKETCH`, `DEFAULT`, `DRAW` or `PART`.
    """
    return mix((seed + purpose * _GOLDEN) & _MASK)


def scaled(hashed: int, count: int) -> int:
    """A hash as a number below ``count``, by its upper 32 bits.

    Args:
        hashed: hash of 64 bits.
        count: number of possible results, up to 2^32.
    """
    return (hashed >> 32) * count >> 32


def parts_of(keys: UInt64[np.ndarray, " N"], seed: int, count: int) -> UInt64[np.ndarray, " N"]:
    """The parts of a map that ids belong to, from 0: `scaled` of `mix` for `PART`.

    Args:
        keys: ids.
        seed: seed of the map.
        count: number of parts.
    """
    x = keys ^ np.uint64(salt(seed, PART))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)


def sketch_places(hashed: int, blocks: int) -> list[int]:
    """The four cells of an id in a sketch: one in each quarter of a block of 64.

    Args:
        hashed: hash of the id for `SKETCH`.
        blocks: blocks of the sketch.
    """
    first = 64 * scaled(hashed, blocks)
    return [first + 16 * q + (hashed >> 4 * q & 15) for q in range(4)]


def draw(hashed: int, now: int) -> float:
    """The number from 0 to less than 1 that an id draws at a time.

    Args:
        hashed: hash of the id for `DRAW`.
        now: time.
    """
    return (mix((hashed + now * _GOLDEN) & _MASK) >> 11) * 2.0**-53

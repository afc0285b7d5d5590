"""Bloom filters of items: bits that tell, for most items, that they lack an attribute's value.

Each value of an item sets three bits among those of the item. An item that lacks one of a value's
bits doesn't have the value; one that has all of them may have it. Bits are stored across: a word
has one bit of each of the 32 items of a block, so that a few words tell what 32 items lack.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32, UInt32

from dlrm_jax.native.item_scan import BLOCK

HASHES = 3
"""Bits of a value."""

_BITS_OF_VALUE = 16  # so that an item seems to have 0.5 % of the values that it lacks
_MOST_BITS = 512
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def default_bits(columns: int) -> int:
    """Bits of an item with so many attribute values."""
    return min(_MOST_BITS, -(-columns * _BITS_OF_VALUE // BLOCK) * BLOCK)


def positions(attribute: int, values: Int[np.ndarray, " n"], bits: int) -> Int32[np.ndarray, "n 3"]:
    """The bits of values of an attribute, by number of the attribute and of the value, from 0."""
    keys = (np.uint64(attribute + 1) << np.uint64(32)) + values.astype(np.uint64)
    # The mixing steps of splitmix64 (Steele et al., 2014), which spread all bits.
    keys = (keys ^ (keys >> np.uint64(30))) * _FIRST
    keys = (keys ^ (keys >> np.uint64(27))) * _SECOND
    keys ^= keys >> np.uint64(31)
    steps = np.arange(HASHES, dtype=np.uint64)
    # Two hashes are enough for all (Kirsch and Mitzenmacher, 2006).
    hashes = (keys & np.uint64(0xFFFFFFFF))[:, None] + steps * (keys >> np.uint64(32))[:, None]
    return (hashes % np.uint64(bits)).astype(np.int32)


def make_bits(
    ids: Int32[np.ndarray, "P W"],
    attributes: Sequence[tuple[int, int]],
    bits: int,
) -> UInt32[np.ndarray, "B bits"]:
    """The bits of all items, block by block.

    Args:
        ids: values of the item of each place; negative is absent.
        attributes: first column of each attribute, and the one after the last.
        bits: bits of an item.
    """
    words = np.zeros((len(ids) // BLOCK, bits), np.uint32)
    for attribute, (begin, end) in enumerate(attributes):
        for column in range(begin, end):
            there = np.flatnonzero(ids[:, column] >= 0)
            of_values = positions(attribute, ids[there, column], bits)
            bit = np.uint32(1) << (there % BLOCK).astype(np.uint32)
            for hash_ in range(HASHES):
                np.bitwise_or.at(words, (there // BLOCK, of_values[:, hash_]), bit)
    return words

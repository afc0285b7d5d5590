"""Checks of the ids of strings, with native kernels and without."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from dlrm_jax.dynamic_ids.hashing import hash_strings, hash_utf8
from dlrm_jax.errors import UserError

# Values of the specification's implementation; files keep them.
KNOWN = {
    "": 0xEF46DB3751D8E999,
    "abc": 0x44BC2CF5AD770999,
}


def check_strings() -> None:
    """Known hashes, alone and together, and arguments that aren't possible."""
    assert hash_strings(list(KNOWN)).tolist() == list(KNOWN.values())
    assert hash_strings([]).shape == (0,)
    many = [f"{i}-ü" * (i % 9) for i in range(40_000)]
    assert hash_strings(many).tolist() == [xxhash.xxh64_intdigest(x.encode()) for x in many]
    data = np.frombuffer(b"xxabcyy", np.uint8)
    assert hash_utf8(data, np.array([2, 5])).tolist() == [KNOWN["abc"]]
    for offsets in ([], [-1, 2], [0, 8], [3, 2, 5]):
        with pytest.raises(UserError, match="offsets: expected numbers from 0 to 7"):
            hash_utf8(data, np.array(offsets, np.int64))
    with pytest.raises(UserError, match="which UTF-8 can't write"):
        hash_strings(["a", "\ud800"])

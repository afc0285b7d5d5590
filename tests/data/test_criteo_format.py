from pathlib import Path

import numpy as np
import pytest

from dlrm_jax.data.formats.criteo_format import (
    EMPTY,
    LARGEST_INTEGER,
    MAY_BE_EMPTY,
    LineFormatter,
    mix,
)
from dlrm_jax.data.formats.criteo_text import parse_chunk


def one_by_one(labels, integers, ids):
    lines = []
    for label, numbers, row in zip(labels, integers, ids, strict=True):
        hashes = [f"{mix(row[[f]], f)[0]:08x}" for f in range(26)]
        fields = [
            str(label),
            *("" if n == EMPTY else str(n) for n in numbers),
            *("" if row[f] == 0 and f in MAY_BE_EMPTY else hashes[f] for f in range(26)),
        ]
        lines.append("\t".join(fields) + "\n")
    return "".join(lines).encode()


def random_examples(n, seed=0):
    rng = np.random.default_rng(seed)
    integers = rng.choice([EMPTY, -1, 0, 7, 10, 99, 100, 9999, 10_000, LARGEST_INTEGER], (n, 13))
    ids = rng.choice([0, 1, 2, 1000, 2**31 - 1], (n, 26))
    return (
        rng.integers(0, 2, n).astype(np.int32),
        integers.astype(np.int32),
        ids.astype(np.int32),
    )


def test_lines_are_as_formatted_one_by_one():
    formatter = LineFormatter()
    # The buffer is used again; what was longer before must not shine through.
    for n, seed in ((50, 0), (300, 1), (20, 2), (0, 3)):
        examples = random_examples(n, seed)
        assert formatter(*examples) == one_by_one(*examples)


def test_lines_are_read_by_the_parser():
    lines = LineFormatter()(*random_examples(300))
    parse_chunk(lines, Path("train.txt"), 1)
    assert lines.count(b"\n") == 300


@pytest.mark.parametrize(
    "salt", [25, *(pytest.param(x, marks=pytest.mark.thorough) for x in (0, 51))]
)
def test_mixing_keeps_ids_apart(salt):
    ids = np.concatenate([np.arange(1 << 20), 2**31 - 1 - np.arange(1000)]).astype(np.int32)
    values = mix(ids, salt)
    assert len(np.unique(values)) == len(ids)
    # Even over the whole range: the standard deviation of a sixteenth's share is 0.0002.
    shares = np.bincount(values >> np.uint32(28), minlength=16) / len(ids)
    np.testing.assert_allclose(shares, 1 / 16, atol=0.002)
    assert (mix(ids, salt + 1) != values).all()

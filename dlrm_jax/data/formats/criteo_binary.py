"""Criteo's data in the binary form of MLPerf's first DLRM benchmark: 40 int32 a sample.

A sample is the label, 13 integers and 26 ids, little-endian; there is no header. Missing values
are stored as 0, so that they are a value here and missing in text; see `missing_values`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.data.formats.criteo_text import CATEGORICALS, COLUMNS, INTEGERS
from dlrm_jax.data.formats.lines import OnBadLine
from dlrm_jax.errors import UserError

SAMPLE_BYTES = 4 * len(COLUMNS)
CHUNK_BYTES = SAMPLE_BYTES << 18

_LABELS = (b"\0\0\0\0", b"\1\0\0\0")


def is_binary(first: bytes) -> bool:
    """Whether a file that begins with these 4 bytes is binary: text begins with digits."""
    return first in _LABELS


def parse_chunk(
    chunk: bytes, path: Path, first_sample: int, on_bad_line: OnBadLine = "stop"
) -> pl.DataFrame:
    """Parses consecutive samples into a frame as from `criteo_text`; nothing is null.

    Raises:
        UserError: a sample is malformed; the message names the first one.
    """
    if rest := len(chunk) % SAMPLE_BYTES:
        raise UserError(
            f"{path}: expected samples of {SAMPLE_BYTES} bytes, {rest} are left after sample "
            f"{first_sample + len(chunk) // SAMPLE_BYTES - 1}; was the download complete?"
        )
    samples = np.frombuffer(chunk, "<i4").reshape(-1, len(COLUMNS))
    bad = (samples[:, 0] != 0) & (samples[:, 0] != 1)
    if bad.any() and on_bad_line == "stop":
        row = int(bad.argmax())
        raise UserError(
            f"{path}, sample {first_sample + row}, column 1 (label): expected 0 or 1, found "
            f"{samples[row, 0]}. Is it a file of {len(COLUMNS)} int32 a sample?"
        )
    columns = dict(zip(COLUMNS, samples[~bad].T, strict=True))
    return pl.DataFrame(
        {
            "label": columns["label"].astype(np.int64),
            **{name: columns[name].astype(np.int64) for name in INTEGERS},
            **{name: columns[name].astype(np.uint32) for name in CATEGORICALS},
        }
    )

"""Writes generated examples as files for other programs."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import zstandard

from dlrm_jax.data.formats.criteo_format import LineFormatter
from dlrm_jax.data.formats.criteo_text import CATEGORICALS, INTEGERS
from dlrm_jax.data.formats.npy import ArrayWriter
from dlrm_jax.data.generated.example_stream import Block


def write_raw(path: Path, blocks: Iterator[Block], suffix: str = "") -> None:
    """Writes raw lines in Criteo's layout.

    Args:
        path: the file.
        blocks: the examples.
        suffix: suffix of the final name: ``.gz`` and ``.zst`` compress, to the same bytes for
            the same lines.

    Raises:
        OSError: the file can't be written.
    """
    formatter = LineFormatter()
    with ExitStack() as stack:
        file = lines = stack.enter_context(path.open("wb"))
        if suffix == ".gz":
            # Hashes and labels don't get smaller at higher levels. The header has no name and time.
            lines = stack.enter_context(gzip.GzipFile("", "wb", 1, file, mtime=0))
        elif suffix == ".zst":
            # The checksum lets readers notice damage, as gzip's does.
            compressor = zstandard.ZstdCompressor(write_checksum=True)
            lines = stack.enter_context(compressor.stream_writer(file, closefd=False))
        for block in blocks:
            lines.write(formatter(block.labels, block.integers, block.ids))


def write_arrays(directory: Path, day: int, examples: int, blocks: Iterator[Block]) -> None:
    """Writes the three arrays of a day in TorchRec's layout (``InMemoryBinaryCriteoIterDataPipe``).

    They are ``day_i_dense.npy`` float32 [N, 13], ``day_i_sparse.npy`` int32 [N, 26] and
    ``day_i_labels.npy`` int32 [N, 1].

    Args:
        directory: directory for the files.
        day: number of the day, i.
        examples: number of examples, N.
        blocks: the examples, N in all.

    Raises:
        OSError: the files can't be written.
    """

    def writer(name: str, width: int, dtype: type[np.generic]) -> ArrayWriter:
        return ArrayWriter(directory / f"day_{day}_{name}.npy", (examples, width), dtype)

    with (
        writer("dense", len(INTEGERS), np.float32) as dense,
        writer("sparse", len(CATEGORICALS), np.int32) as sparse,
        writer("labels", 1, np.int32) as labels,
    ):
        for block in blocks:
            dense.append(block.dense)
            sparse.append(block.ids)
            labels.append(block.labels)

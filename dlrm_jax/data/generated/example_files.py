"""Writes generated examples as files for other programs."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dlrm_jax.data.formats.compression import zstd
from dlrm_jax.data.formats.criteo_format import LineFormatter
from dlrm_jax.data.formats.criteo_text import CATEGORICALS, INTEGERS
from dlrm_jax.data.formats.npy import ArrayWriter
from dlrm_jax.data.generated.example_stream import Chunk


def write_raw(path: Path, chunks: Iterator[Chunk], suffix: str = "") -> None:
    """Writes raw lines in Criteo's layout.

    ``suffix`` is that of the final name: ``.gz`` and ``.zst`` compress, to the same bytes for the
    same lines.
    """
    formatter = LineFormatter()
    with ExitStack() as stack:
        file = lines = stack.enter_context(path.open("wb"))
        if suffix == ".gz":
            # Hashes and labels don't get smaller at higher levels. The header has no name and time.
            lines = stack.enter_context(gzip.GzipFile("", "wb", 1, file, mtime=0))
        elif suffix == ".zst":
            # The checksum lets readers notice damage, as gzip's does.
            options: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
            lines = stack.enter_context(zstd.ZstdFile(file, "wb", options=options))
        for chunk in chunks:
            lines.write(formatter(chunk.labels, chunk.integers, chunk.ids))


def write_arrays(directory: Path, day: int, examples: int, chunks: Iterator[Chunk]) -> None:
    """Writes the three arrays of a day in TorchRec's layout (``InMemoryBinaryCriteoIterDataPipe``).

    They are ``day_i_dense.npy`` float32 [N, 13], ``day_i_sparse.npy`` int32 [N, 26] and
    ``day_i_labels.npy`` int32 [N, 1]. There are N examples in all chunks together.
    """

    def writer(name: str, width: int, dtype: type[np.generic]) -> ArrayWriter:
        return ArrayWriter(directory / f"day_{day}_{name}.npy", (examples, width), dtype)

    with (
        writer("dense", len(INTEGERS), np.float32) as dense,
        writer("sparse", len(CATEGORICALS), np.int32) as sparse,
        writer("labels", 1, np.int32) as labels,
    ):
        for chunk in chunks:
            dense.append(chunk.dense)
            sparse.append(chunk.ids)
            labels.append(chunk.labels)

"""The files of an index in an artifact: arrays as ``.npy``, which are mapped, and values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.artifact.files import read_array
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.retrieval_note import AttributeNote, RetrievalNote
from dlrm_jax.data.formats import parquet
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.feature_names import file_name, listed
from dlrm_jax.native.item_scan import BLOCK
from dlrm_jax.retrieval.index.attributes import Attribute, Attributes
from dlrm_jax.retrieval.index.item_index import ItemIndex
from dlrm_jax.retrieval.index.vectors import ItemVectors, in_order

_DIRECTORY = "index"
ITEMS = f"{_DIRECTORY}/items.parquet"
"""The values of the items, a row each in the order of their numbers."""

_VECTORS, _SCALES, _NUMBERS, _STARTS, _CENTROIDS, _CENTROID_SCALES, _IDS, _BITS = (
    f"{_DIRECTORY}/{name}.npy"
    for name in (
        "vectors", "scales", "numbers", "starts", "centroids", "centroid_scales", "attributes",
        "bloom",
    )
)  # fmt: skip


def write_index(
    directory: Path, index: ItemIndex, items: pl.DataFrame, item: str, dense: tuple[str, ...]
) -> RetrievalNote:
    """Writes an index.

    Args:
        directory: directory of the artifact.
        index: index.
        items: values of the items, for people.
        item: name of the column that tells items apart.
        dense: names of the dense features of the user.
    """
    (directory / _DIRECTORY).mkdir()
    arrays = {
        _VECTORS: index.vectors.blocks,
        _SCALES: index.vectors.scales,
        _NUMBERS: index.vectors.numbers,
        _STARTS: index.starts,
    }
    if index.centroids is not None:
        arrays |= {_CENTROIDS: index.centroids.blocks, _CENTROID_SCALES: index.centroids.scales}
    notes = []
    if index.attributes is not None and index.bits is not None:
        arrays |= {_IDS: index.attributes.ids, _BITS: index.bits}
        for attribute in index.attributes.attributes:
            file = f"{_DIRECTORY}/values_{file_name(attribute.name)}.parquet"
            attribute.values.write_parquet(directory / file)
            notes.append(AttributeNote(attribute.name, attribute.columns, file))
    for name, array in arrays.items():
        write_npy(directory / name, array)
    items.write_parquet(directory / ITEMS)
    bits = 0 if index.bits is None else index.bits.shape[1]
    shape = len(items), index.vectors.dim, index.cells, index.probes
    return RetrievalNote(dense, item, *shape, bits, tuple(notes))


def read_index(directory: Path, manifest: Manifest) -> ItemIndex:
    """The index of an artifact, mapped. Its files are there, see `files.check_present`.

    Numbers that the kernel takes for places in memory are checked: the artifact may come from
    anybody.

    Raises:
        DamagedArtifactError: a file can't be read or doesn't fit the others.
    """
    note = manifest.retrieval
    assert note is not None
    read = _Reader(directory, manifest.files)
    groups = -(-note.dim // 4)
    stored = read.array(_VECTORS, np.int8, (None, groups, BLOCK, 4))
    blocks = len(stored)
    vectors = ItemVectors(
        stored,
        read.scales(_SCALES, blocks * BLOCK),
        read.array(_NUMBERS, np.int32, (blocks * BLOCK,)),
        note.dim,
    )
    there = np.sort(vectors.numbers[vectors.numbers != -1])
    if len(there) != note.items or not np.array_equal(there, np.arange(note.items)):
        raise read.damage(_NUMBERS, f"expected each of {note.items:,} items once")
    starts = np.array(read.array(_STARTS, np.int64, (note.cells + 1,)))
    if starts[0] != 0 or starts[-1] != blocks or (starts[1:] < starts[:-1]).any():
        raise read.damage(_STARTS, f"expected ascending numbers from 0 to {blocks:,}")
    centroids = None
    if note.cells > 1:  # as many as there are starts, so no more than fit into memory
        numbers = in_order(note.cells)
        centroids = ItemVectors(
            read.array(_CENTROIDS, np.int8, (len(numbers) // BLOCK, groups, BLOCK, 4)),
            read.scales(_CENTROID_SCALES, len(numbers)),
            numbers,
            note.dim,
        )
    attributes = bits = None
    if note.attributes:
        width = max(x.columns[1] for x in note.attributes)
        found = tuple(Attribute(x.name, x.columns, read.values(x)) for x in note.attributes)
        attributes = Attributes(read.array(_IDS, np.int32, (blocks * BLOCK, width)), found)
        if not note.bloom_bits:
            raise read.damage(_BITS, "expected bits for the attributes")
        bits = read.array(_BITS, np.uint32, (blocks, note.bloom_bits))
    return ItemIndex(vectors, starts, centroids, attributes, bits, min(note.probes, note.cells))


def read_items(directory: Path, manifest: Manifest) -> pl.DataFrame:
    """The values of the items.

    Raises:
        DamagedArtifactError: the file can't be read, or has other items than the index.
    """
    note, read = manifest.retrieval, _Reader(directory, manifest.files)
    assert note is not None
    found = read.frame(ITEMS, "items")
    if len(found) != note.items:
        raise read.damage(
            ITEMS, f"expected a row for each of {note.items:,} items, it has {len(found):,}"
        )
    if note.item not in found.columns:
        raise read.damage(
            ITEMS,
            f"expected a column {note.item!r}, which tells items apart, it has only "
            f"{listed(found.columns) or 'none'}",
        )
    return found


class _Reader:
    """Reads files that the manifest names."""

    def __init__(self, directory: Path, files: Mapping[str, object]):
        self._directory, self._files = directory, files

    def damage(self, name: str, reason: str) -> DamagedArtifactError:
        return DamagedArtifactError(str(self._directory), name, reason)

    def array(
        self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
    ) -> np.ndarray:
        """See `read_array`; row by row, as the kernel reads it."""
        self._check(name)
        array = read_array(self._directory, name, dtype, shape)
        if not array.flags.c_contiguous:
            raise self.damage(name, "expected an array in C order, it has Fortran's")
        return array

    def scales(self, name: str, count: int) -> np.ndarray:
        """Scales, finite: a cell whose score is NaN isn't found, and -1 is read in its place."""
        array = self.array(name, np.float32, (count,))
        wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
        if len(wrong):
            found = f"it has {array[wrong[0]]} at {wrong[0]}"
            raise self.damage(name, f"expected finite scales, {found}")
        return array

    def frame(self, name: str, content: str) -> pl.DataFrame:
        """A Parquet file."""
        self._check(name)
        try:
            with parquet.reading(f"the {content} {self._directory / name}"):
                return pl.read_parquet(self._directory / name, glob=False)
        except UserError as error:
            raise self.damage(name, str(error)) from error

    def values(self, note: AttributeNote) -> pl.DataFrame:
        found = self.frame(note.file, "values")
        types = found.dtypes
        if found.columns != ["value", "id"] or types[0].is_nested() or types[1] != pl.Int32:
            raise self.damage(note.file, f"expected value and id, it has {found.schema}")
        wrong = found["id"].filter(found["id"].is_null() | (found["id"] < 0))
        if len(wrong):
            raise self.damage(note.file, f"expected ids from 0 on, it has {wrong[0]}")
        begin, end = note.columns
        if not 0 <= begin < end:
            raise self.damage(note.file, f"expected columns a < b, got {note.columns}")
        return found

    def _check(self, name: str) -> None:
        if name not in self._files:
            raise self.damage(name, "the manifest doesn't name it")

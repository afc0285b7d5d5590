"""Golden queries: users with the vectors and the items that an artifact must give for them.

Vectors may differ in their last digits, as another processor may sum in another order. The items of
a vector may not: they follow from integers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dlrm_jax.artifact.files import as_damage, files_of_others, read_array
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.inference.artifact_scorer import kept_by
from dlrm_jax.retrieval.index import index_files
from dlrm_jax.retrieval.retriever import Retriever
from dlrm_jax.serving.sensitivity import FLOAT32, Tolerance
from dlrm_jax.serving.verify import read_whole

QUERIES = 100
_ITEMS = 10
TOLERANCE = Tolerance(1e-5, FLOAT32)
"""Differences of a number of a vector, whose length is 1."""

_DIRECTORY = "golden"
_DENSE, _IDS, _VECTORS, _FOUND, _SCORES = _FILES = tuple(
    f"{_DIRECTORY}/{name}.npy" for name in ("dense", "ids", "vectors", "items", "scores")
)


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was found in an artifact that is as it was written.

    Attributes:
        manifest: description.
        queries: number of golden queries.
        difference: largest difference of a number of their vectors.
        others: files in the directory that aren't part of it.
    """

    manifest: Manifest
    queries: int
    difference: float
    others: list[str]


def write(directory: Path, retriever: Retriever, users: Examples) -> None:
    """Writes users with their vectors and items.

    Args:
        directory: directory of the artifact.
        retriever: retriever of the artifact.
        users: dense features and ids of the user's columns.
    """
    (directory / _DIRECTORY).mkdir()
    vectors = retriever.vectors(users)
    found = retriever.index.search(vectors, _ITEMS)
    arrays = (users.dense, np.asarray(users.ids), vectors, found.items, found.scores)
    for name, array in zip(_FILES, arrays, strict=True):
        write_npy(directory / name, array)


def verify(directory: Path) -> Verified:
    """Reads all files of an artifact of two towers, and asks its golden queries.

    Raises:
        UserError: there is no artifact, or a later version wrote it.
        DamagedArtifactError: a file is missing or has other bytes, or answers differ.
    """
    manifest = read_whole(directory, (*_FILES, index_files.ITEMS))
    retriever = Retriever.load(directory)
    _ = retriever.items
    if kept_by(directory, manifest):
        with as_damage(directory):
            _ = retriever.encoder
    users, expected = _users(directory, manifest)
    items = read_array(directory, _FOUND, np.int64, (len(users), None))
    scores = read_array(directory, _SCORES, np.float32, items.shape)
    try:
        vectors = retriever.vectors(users)
        found = retriever.index.search(np.array(expected), items.shape[1])
    except UserError as error:
        raise DamagedArtifactError(str(directory), _VECTORS, str(error)) from error
    difference = float(np.abs(vectors - expected).max())
    allowed = TOLERANCE.of(difference, retriever.artifact, users, np.asarray)
    if not difference <= allowed:  # NaN isn't, either
        raise DamagedArtifactError(
            str(directory),
            _VECTORS,
            f"expected its vectors to within {allowed:.2g}, they differ by {difference:.2g}",
        )
    if not (np.array_equal(found.items, items) and np.array_equal(found.scores, scores)):
        raise DamagedArtifactError(
            str(directory), _FOUND, "the index gives other items for the golden vectors"
        )
    others = files_of_others(directory, manifest.files)
    return Verified(manifest, len(users), difference, others)


def _users(directory: Path, manifest: Manifest) -> tuple[Examples, Float32[np.ndarray, "N d"]]:
    """The users and their vectors."""
    columns, dim = sum(feature.max_ids for feature in manifest.features), manifest.outputs
    dense = read_array(directory, _DENSE, np.float32, (None, manifest.dense_features))
    if not len(dense):
        raise DamagedArtifactError(str(directory), _DENSE, "expected golden queries, it has none")
    ids = read_array(directory, _IDS, np.int32, (len(dense), columns))
    vectors = read_array(directory, _VECTORS, np.float32, (len(dense), dim))
    return Examples(dense, ids, np.zeros(len(dense), np.float32)), vectors

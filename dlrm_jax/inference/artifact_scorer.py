"""An artifact as what gives logits, on one device."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.retrieval_note import check_click_model
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.metadata import METADATA, Metadata
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.serving import files_of
from dlrm_jax.embedding.table import check_whole
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.inference.scorer import Inputs
from dlrm_jax.inference.vocabularies import check_same_data
from dlrm_jax.mesh import parse_mesh
from dlrm_jax.signals import check

PREPROCESSING = "preprocessing"
"""The directory of an artifact that maps raw values to ids."""


@dataclasses.dataclass(frozen=True)
class ArtifactScorer:
    """An artifact and the inputs that it expects.

    Attributes:
        artifact: artifact.
    """

    artifact: Artifact

    def __repr__(self) -> str:
        return repr(self.artifact)

    @property
    def inputs(self) -> Inputs:
        """What it expects of examples."""
        return self._inputs

    @functools.cached_property
    def _inputs(self) -> Inputs:
        return inputs_of(self.artifact.manifest)

    def batch_sizes(self, most: int) -> tuple[int, ...]:
        """See `Scorer`."""
        sizes = self.artifact.batch_sizes
        return sizes[: bisect.bisect_left(sizes, most) + 1]

    def logits(
        self, split: Split, batch_size: int, shared: Collection[str] = ()
    ) -> Iterator[Float32[np.ndarray, "B *_"]]:
        """See `Scorer`."""
        for first in range(0, len(split), batch_size):
            check()
            part = split if len(split) <= batch_size else split[first : first + batch_size]
            dense, ids = _arrays(part)
            yield self.artifact.logits(dense, ids, shared=shared)


def _arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Dense features and ids, of a single day as they are."""
    day = split.days[0] if len(split.days) == 1 else split.take(np.arange(len(split)))
    return day.dense, np.asarray(day.ids)


def inputs_of(manifest: Manifest) -> Inputs:
    """What the model of a manifest expects of examples."""
    features = manifest.features
    return Inputs(
        manifest.dense_features,
        tuple(x.name for x in features),
        tuple(x.rows for x in features),
        tuple(x.max_ids for x in features),
        manifest.labels,
        manifest.id_rows is not None and manifest.id_rows.schema is not None,
    )


def kept_by(directory: Path, manifest: Manifest) -> Path | None:
    """The directory of an artifact that maps raw values to ids; None if it has none.

    Raises:
        DamagedArtifactError: its description can't be read, or the manifest doesn't name all of its
            files.
    """
    description = f"{PREPROCESSING}/{METADATA}"
    if description not in manifest.files:
        return None
    kept = directory / PREPROCESSING
    try:
        needed = files_of(Metadata.read(kept))
    except UserError as error:
        raise DamagedArtifactError(str(directory), description, str(error)) from error
    for name in (f"{PREPROCESSING}/{file}" for file in needed):
        if name not in manifest.files:
            raise DamagedArtifactError(str(directory), name, "the manifest doesn't name it")
    return kept


class Loaded(NamedTuple):
    """An artifact that predicts; the arguments of `Predictor`, in their order."""

    scorer: ArtifactScorer
    batch_size: int
    vocabularies: Path | None
    fingerprint: str
    shift: float
    schema: Schema | None


def load_artifact(
    directory: Path,
    mesh: Mesh | str,
    batch_size: int,
    model: str | None,
    preprocessing: Path | None,
) -> Loaded:
    """See `Predictor.load`."""
    devices = mesh.size if isinstance(mesh, Mesh) else int(np.prod(parse_mesh(mesh, "mesh")))
    if devices != 1:
        raise UserError(
            f"mesh: an artifact predicts on one device, expected 1x1, got {devices} devices; load "
            f"the run for a larger mesh"
        )
    if model:
        raise UserError(f"model: an artifact needs no class, got {model!r}; leave it out")
    check_whole("batch_size", batch_size, 1)
    artifact = Artifact.load(directory)
    manifest = artifact.manifest
    check_click_model(directory, manifest.retrieval)
    if preprocessing:
        check_same_data(preprocessing, directory, manifest.data)
    vocabularies = preprocessing or kept_by(directory, manifest)
    schema = manifest.id_rows.own_schema() if manifest.id_rows else None
    scorer, data = ArtifactScorer(artifact), manifest.data
    return Loaded(scorer, batch_size, vocabularies, data, manifest.shift, schema)

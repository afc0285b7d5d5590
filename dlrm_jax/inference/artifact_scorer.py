"""An artifact as what gives logits, on one device."""

from __future__ import annotations

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
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.batches import evaluation_batches
from dlrm_jax.data.directory import METADATA
from dlrm_jax.errors import UserError
from dlrm_jax.inference.scorer import Inputs
from dlrm_jax.inference.vocabularies import check_same_data
from dlrm_jax.mesh import parse_mesh
from dlrm_jax.signals import check
from dlrm_jax.training.evaluation import limited

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

    @property
    def devices(self) -> int:
        """One device."""
        return 1

    def logits(
        self, split: Split, batch_size: int, shared: Collection[str] = ()
    ) -> Iterator[Float32[np.ndarray, "B *_"]]:
        """See `Scorer`."""
        left = len(split)
        size = self.artifact.batch_size(limited(batch_size, left, 1))
        # No chunks of padding alone; the program is the same.
        chunk = self.artifact.chunk(size)
        size = min(size, max(1, -(-left // chunk)) * chunk)
        if 0 < left == size and len(split.days) == 1:  # a request, of one row most often
            check()
            (day,) = split.days
            yield self.artifact.logits(day.dense, np.asarray(day.ids), shared=shared)
            return
        for batch in evaluation_batches(split, size):
            check()
            logits = self.artifact.logits(batch.dense, batch.ids, shared=shared)
            yield logits[:left]  # the last batch is filled up
            left -= len(logits)


def inputs_of(manifest: Manifest) -> Inputs:
    """What the model of a manifest expects of examples."""
    features = manifest.features
    return Inputs(
        manifest.dense_features,
        tuple(x.name for x in features),
        tuple(x.rows for x in features),
        tuple(x.max_ids for x in features),
        manifest.labels,
    )


def kept_by(directory: Path, manifest: Manifest) -> Path | None:
    """The directory of an artifact that maps raw values to ids; None if it has none."""
    return directory / PREPROCESSING if f"{PREPROCESSING}/{METADATA}" in manifest.files else None


class Loaded(NamedTuple):
    """An artifact that predicts; the arguments of `Predictor`, in their order."""

    scorer: ArtifactScorer
    batch_size: int
    vocabularies: Path | None
    fingerprint: str
    shift: float


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
    artifact = Artifact.load(directory)
    manifest = artifact.manifest
    if preprocessing:
        check_same_data(preprocessing, directory, manifest.data)
    vocabularies = preprocessing or kept_by(directory, manifest)
    return Loaded(ArtifactScorer(artifact), batch_size, vocabularies, manifest.data, manifest.shift)

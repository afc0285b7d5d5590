"""Verifies an artifact: every byte of its files, and its predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from dlrm_jax.artifact.files import as_damage, check_content, check_present, files_of_others
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.errors import DamagedArtifactError
from dlrm_jax.inference.artifact_scorer import ArtifactScorer
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving import golden

NATIVE, PROGRAM = "native layers", "the program"


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was found in an artifact that is as it was written.

    Attributes:
        manifest: description.
        golden: comparison of the golden rows by what predicts them: `NATIVE`, if this machine has
            kernels for the layers, and `PROGRAM`, which other machines run.
        unchecked_layers: whether the artifact has native layers, but this machine no kernels.
        others: files in the directory that aren't part of it.
    """

    manifest: Manifest
    golden: Mapping[str, golden.Compared]
    unchecked_layers: bool
    others: list[str]


def verify(directory: Path) -> Verified:
    """Reads all files of an artifact and predicts its golden rows.

    Raises:
        UserError: there is no artifact, or a later version wrote it.
        DamagedArtifactError: a file is missing or has other bytes, or predictions differ.
    """
    manifest = read_whole(directory, golden.FILES)
    predictor = Predictor.load(directory)
    if predictor.takes_raw_rows:
        with as_damage(directory):
            _ = predictor.row_encoder
    assert isinstance(predictor.scorer, ArtifactScorer)
    artifact = predictor.scorer.artifact
    programs = artifact.programs.values()
    is_float32 = all(program.is_float32 for program in programs)
    tolerance = golden.TOLERANCE if is_float32 else golden.SHORT_TOLERANCE
    ways = {NATIVE: artifact} if artifact.native else {}
    ways[PROGRAM] = dataclasses.replace(artifact, native=None)
    compared = {}
    for name, way in ways.items():
        by_way = dataclasses.replace(predictor, scorer=ArtifactScorer(way))
        compared[name] = golden.compare(directory, by_way, tolerance)
    unchecked = manifest.dense_layers is not None and not artifact.native
    others = files_of_others(directory, manifest.files)
    return Verified(manifest, compared, unchecked, others)


def read_whole(directory: Path, needed: Collection[str]) -> Manifest:
    """The manifest of an artifact all of whose files are as they were written.

    Args:
        directory: directory of the artifact.
        needed: files that it must name.

    Raises:
        UserError: there is no artifact, or a later version wrote it.
        DamagedArtifactError: a file is missing or has other bytes.
    """
    manifest = Manifest.read(directory)
    check_present(directory, manifest.files)
    for name in needed:
        if name not in manifest.files:
            raise DamagedArtifactError(str(directory), name, "the manifest doesn't name it")
    for name, note in manifest.files.items():
        check_content(directory, name, note)
    return manifest

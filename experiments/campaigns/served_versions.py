"""Versions of a model that replace each other while they are served, and what each predicts."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import dlrm_jax
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel
from examples.own_log import make_log

_BAGS = {"viewed": 8}


def make_artifacts(directory: Path) -> list[Path]:
    """Two artifacts of one run, of an earlier and a later step.

    Args:
        directory: new directory.
    """
    directory.mkdir()
    make_log(4000, seed=0).write_parquet(directory / "log.parquet")
    schema = Schema("clicked", ("shop", "viewed"), ("price",), bag_lengths=_BAGS)
    preprocess([directory / "log.parquet"], directory / "log", Options(schema))
    config = Config(
        embedding_dim=8,
        bottom_mlp=(16, 8),
        top_mlp=(32, 1),
        batch_size=256,
        steps=20,
        checkpoint_every=10,
        eval_every=10,
    )
    run = directory / "run"
    dlrm_jax.fit(config, directory / "log", workdir=run)
    found = []
    for step, row_format in zip(
        sorted((run / "checkpoints").iterdir()), ("float32", "int8"), strict=True
    ):
        found.append(directory / step.name)
        export(TrainedModel.read(step), found[-1], "soak", row_format)
    return found


class Versions:
    """A directory of numbered versions, which are copies of some artifacts in turn.

    Args:
        directory: directory to make.
        artifacts: artifacts.
    """

    def __init__(self, directory: Path, artifacts: Sequence[Path]):
        self.directory, self._artifacts = directory, artifacts
        directory.mkdir()
        self._numbers = itertools.count(1)
        self.newest = self.add()

    def artifact_of(self, version: int) -> int:
        """The number of the artifact that a version is a copy of, from 0."""
        return version % len(self._artifacts)

    def add(self, damaged: bool = False) -> int:
        """Adds a version, as a whole; returns its number.

        Args:
            damaged: whether one of its layers has a flipped bit.
        """
        number = next(self._numbers)
        source = self._artifacts[self.artifact_of(number)]
        new = self.directory / f"{number}.new"
        shutil.copytree(source, new)
        if damaged:
            layer = new / Manifest.read(new).layers[0].file
            content = bytearray(layer.read_bytes())
            content[-1] ^= 1
            layer.write_bytes(content)
        new.rename(self.directory / f"{number}")
        return number

    def remove(self, number: int) -> None:
        """Deletes a version; what is mapped stays for those who have it."""
        shutil.rmtree(self.directory / f"{number}")


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether probabilities are the same, in sums of another order."""
    return found.shape == expected.shape and bool(np.all(np.abs(found - expected) <= 1e-6))

"""Artifacts of a preset's shape without training: drawn tables, and initial layers.

Rows are larger than initial ones, so that a wrong row shows in the predictions.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dlrm_jax.artifact.dense_note import Precision
from dlrm_jax.artifact.manifest import is_artifact
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.embedding import Table
from dlrm_jax.inference.loading import for_prediction
from dlrm_jax.locks import locked
from dlrm_jax.mesh import make_mesh
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import DenseModel, TrainedModel
from dlrm_jax.training.build import make_learner

_CHUNK = 2**20
_DEVIATION = 0.2
_EXAMPLES = 1024


@dataclasses.dataclass(frozen=True)
class DrawnModel(TrainedModel):
    """A model that wasn't trained."""

    seed: int = 0

    @classmethod
    def of(cls, config: Config, seed: int) -> DrawnModel:
        """The model of a config."""
        jaxs = dataclasses.replace(for_prediction(config, 256), kernels="jax")
        learner = make_learner(jaxs, make_mesh("1x1"))
        return cls(Path("drawn"), {"step": seed, "identity": {}}, config, learner, None, None, seed)

    @functools.cached_property
    def dense(self) -> DenseModel:
        """The initial layers."""
        return DenseModel(self.learner, *self.learner.init_model(self.seed))

    def tables(self) -> Iterator[tuple[Table, np.ndarray]]:
        """Yields each table with its rows; a million of them repeat themselves."""
        for table in self.learner.collection.tables.values():
            rng = np.random.default_rng([self.seed, table.rows])
            chunk = rng.standard_normal((min(_CHUNK, table.rows), table.dim), np.float32)
            chunk *= _DEVIATION
            yield table, np.resize(chunk, (table.rows, table.dim))


def drawn_examples(config: Config) -> Split:
    """Examples to calibrate layers on, drawn as the benchmark's are."""
    rng = np.random.default_rng(config.seed)
    dense = rng.standard_normal((_EXAMPLES, config.dense_features), np.float32)
    limits = np.repeat(config.table_rows, config.table_bag_lengths)
    ids = rng.integers(0, limits, (_EXAMPLES, len(limits))).astype(np.int32)
    return Split((Examples(dense, ids, np.zeros(_EXAMPLES, np.float32)),))


def artifacts(
    config: Config,
    name: str,
    formats: Sequence[RowFormat],
    directory: Path,
    fresh: bool,
    layers: Precision = "float32",
) -> dict[str, Path]:
    """The artifacts of a config in some row formats; they are made once and kept.

    Args:
        config: config of the model.
        name: name of the model.
        formats: row formats.
        directory: directory that they are kept in.
        fresh: whether to make those again that are there.
        layers: precision of the layers.
    """
    suffix = "" if layers == "float32" else f"-layers-{layers}"
    found = {}
    with locked(directory / ".lock", f"artifacts {directory}", wait=True):
        for row_format in formats:
            path = directory / f"{name}-{row_format}{suffix}"
            if fresh and path.exists():
                shutil.rmtree(path)
            if not is_artifact(path):
                print(f"making {path}", flush=True)
                model, rows = DrawnModel.of(config, config.seed), drawn_examples(config)
                export(model, path, name, row_format, layers=layers, calibration=rows)
            found[row_format] = path
    return found

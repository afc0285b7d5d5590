"""Training from Python: from a config and data to a trained model, with files or without.

    import dlrm_jax
    from dlrm_jax.presets import preset

    model = dlrm_jax.fit(preset("small"), mesh="2x4", emulate=True)
    print(model.evaluate("test"))
    model.save("runs/small")

``python -m dlrm_jax train`` is the same for the command line.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.errors import UserError
from dlrm_jax.files import as_path
from dlrm_jax.inference import vocabularies
from dlrm_jax.inference.checkpoint_scorer import CheckpointScorer
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import as_mesh, emulate_devices, parse_mesh
from dlrm_jax.presets import PRESETS
from dlrm_jax.run import Options, run
from dlrm_jax.run_data import Source, check_effects, check_split_labels, is_new, load_data
from dlrm_jax.run_start import checkpoints_of, describe_run
from dlrm_jax.training.build import check_config, make_learner
from dlrm_jax.training.config_data import check_shared
from dlrm_jax.training.evaluation import evaluate, rows_as_they_are
from dlrm_jax.training.measures import measures_of
from dlrm_jax.training.model import OF_MODELS, unread
from dlrm_jax.training.record import owned
from dlrm_jax.training.sampling import log_odds_shift
from dlrm_jax.training.saved_names import with_saved_names


@dataclasses.dataclass(frozen=True)
class FittedModel:
    """A trained model and the data of its run.

    Attributes:
        predictor: model, on the mesh of training.
        data: examples of training, validation and test.
        summary: metrics of each split that has examples, steps, speed, as in ``summary.json``.
        noted: metadata that a checkpoint of the model has of its evaluations.
    """

    predictor: Predictor
    data: Dataset
    summary: dict[str, Any]
    noted: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: a notebook shows it behind a cell."""
        test = f", test AUC {self.summary['test']['auc']:.5f}" if "test" in self.summary else ""
        return (
            f"FittedModel({self.predictor.config.model}, mesh {self.summary['mesh']}, "
            f"{int(self.predictor.state.step):,} steps{test})"
        )

    def evaluate(self, split: str | Split = "test") -> dict[str, float | int]:
        """Metrics over all examples of a split.

        Args:
            split: examples, or ``"train"``, ``"validation"`` or ``"test"`` of the run's data.

        Raises:
            UserError: there are no examples, or they have features or labels out of range.
        """
        learner, state = self.predictor.learner, self.predictor.state
        examples, size = self._examples(split), self.predictor.batch_size
        kept = self.data.kept_negatives.get(split, 1.0) if isinstance(split, str) else 1.0
        measures = measures_of(self.predictor.config, self.data)
        measures.check(examples)
        if not isinstance(split, str):  # the run has checked its own
            if examples.labels_per_example != len(learner.labels):
                raise UserError(
                    f"split: expected the labels {', '.join(learner.labels)} of each example, got "
                    f"{examples.labels_per_example}"
                )
            check_split_labels(self.predictor.config, examples, "examples", learner.labels)
        if not len(examples):
            raise UserError("split: expected at least one example, got none")
        measure = functools.partial(measures, kept_negatives=kept)
        return evaluate(learner, self.predictor.compiled, state, examples, size, measure)

    def predict(self, rows: Any) -> Float64[np.ndarray, "N *_"]:
        """The probability of label 1 of every row, in order; [N, H] of several labels.

        Args:
            rows: the name of a split, as for `evaluate`, or rows as for `Predictor.predict`, where
                the path of a file is a `Path`. Labels aren't read.

        Raises:
            UserError: the rows have features out of range; see also `Predictor.predict`.
        """
        return self.predictor.predict(self._examples(rows) if isinstance(rows, str) else rows)

    def save(self, workdir: str | Path) -> Path:
        """Writes the model as a run does, and what maps raw values to its ids.

        ``python -m dlrm_jax predict`` and `Predictor.load` read it, and a run with this workdir
        resumes from it.

        Args:
            workdir: directory without checkpoints.

        Returns:
            the directory of the checkpoint.

        Raises:
            UserError: there are checkpoints, or it can't be written.
        """
        config, learner = self.predictor.config, self.predictor.learner
        with owned(as_path("workdir", workdir)) as directory:
            checkpoints = checkpoints_of(config, self.data, directory)
            if checkpoints.steps():
                raise UserError(
                    f"{checkpoints.directory} has checkpoints already; give another workdir"
                )
            if self.data.directory:
                vocabularies.keep(self.data.directory, self.data.fingerprint, directory)
            kept = self.data.kept_negatives.get("train", 1.0)
            notes = {**describe_run(config, learner, kept), **self.noted}
            checkpoints.save(learner, self.predictor.state, notes, self.noted.get("validation"))
            return checkpoints.directory / f"{int(self.predictor.state.step):08d}"

    def _examples(self, split: str | Split | Examples) -> Split:
        if isinstance(split, Examples):
            split = Split((split,))
        if isinstance(split, Split):
            self.predictor.check_features(split)
            return split
        if not isinstance(split, str) or split not in self.data.splits:
            expected = f"{', '.join(self.data.splits)}, or examples"
            raise UserError(f"split: expected {expected}, got {split!r}")
        return self.data.splits[split]


def fit(
    config: Config,
    data: Source = None,
    mesh: Mesh | str = "1x1",
    *,
    workdir: str | Path | None = None,
    emulate: bool = False,
) -> FittedModel:
    """Trains a model.

    Args:
        config: config of the run. Its tables and dense features are replaced by the data's.
        data: data set, directory of prepared arrays or raw file; None generates examples.
        mesh: devices to train on, or the shape of a mesh of the machine's.
        workdir: directory of metrics and checkpoints; a run that finds checkpoints there resumes.
            None writes no files.
        emulate: whether to ask for as many CPU devices as the mesh needs, see `emulate_devices`;
            before JAX is used for the first time.

    Returns:
        the model of the best checkpoint by validation, which ``summary`` describes. Without a
        workdir, no checkpoint is kept, and it is the last one.

    Raises:
        UserError: config, data and mesh don't fit each other; there are too few devices.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"config: expected a dlrm_jax.config.Config, such as "
            f"dlrm_jax.presets.preset('small'), got {config!r}"
        )
    if not isinstance(data, Dataset | Path | str | None):
        raise UserError(
            f"data: expected a Dataset, the path of a directory of prepared arrays or of a raw "
            f"file, or None for generated examples, got a {type(data).__name__}"
        )
    directory = None if workdir is None else as_path("workdir", workdir)
    if not isinstance(mesh, Mesh | str):
        raise UserError(
            f"mesh: expected a jax.sharding.Mesh or a shape such as '2x4', got {mesh!r}"
        )
    if config.patience and workdir is None:
        raise UserError(
            f"patience: it needs a workdir, where the best checkpoint is kept; without one, the "
            f"model would be that of the last evaluation, got {config.patience}"
        )
    if emulate and isinstance(mesh, Mesh):
        raise UserError("emulate: a mesh has its devices already; give its shape, such as '2x4'")
    if emulate and isinstance(mesh, str):
        shape = parse_mesh(mesh, "mesh")
        emulate_devices(shape[0] * shape[1])
    mesh = as_mesh(mesh)
    new = is_new(directory)
    if new:
        _check_set(config)
    check_config(config, mesh)
    config, dataset = load_data(config, data)
    config = with_saved_names(config, directory)
    if new:
        check_effects(config, data)
        check_shared(config, dataset)
    learner = make_learner(config, mesh)
    outcome = run(config, dataset, learner, Options(directory))
    size = config.evaluation_batch_size
    shift = log_odds_shift(config, dataset.kept_negatives.get("train", 1.0))
    kept = dataset.directory, dataset.fingerprint, shift
    as_ids = outcome.id_maps.find if outcome.id_maps else rows_as_they_are
    scorer = CheckpointScorer(config, learner, outcome.state, as_ids)
    predictor = Predictor(scorer, size, *kept)
    return FittedModel(predictor, dataset, outcome.summary, outcome.noted)


def _check_set(config: Config) -> None:
    """Refuses settings without an effect; a field counts as set if no preset has its value.

    A user may set widths of layers and the like for several models, some of which don't read them.
    """
    for name, why in unread(config).items():
        value = getattr(config, name)
        if name not in OF_MODELS and all(getattr(x, name) != value for x in PRESETS.values()):
            raise UserError(f"{name}: it has no effect {why}, got {value!r}; leave it out")

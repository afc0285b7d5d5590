"""Predicts raw rows and examples, with the model of a checkpoint or an artifact."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Float32, Float64, Shaped

from dlrm_jax.artifact.manifest import is_artifact
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.chosen_labels import chosen_labels
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.sources import ahead
from dlrm_jax.data.preprocessing.unseen_values import UnseenValues
from dlrm_jax.errors import UserError
from dlrm_jax.files import as_path
from dlrm_jax.inference.artifact_scorer import load_artifact
from dlrm_jax.inference.checkpoint_scorer import CheckpointScorer
from dlrm_jax.inference.loading import load_trained
from dlrm_jax.inference.part import Part
from dlrm_jax.inference.probabilities import check_finite, sigmoid
from dlrm_jax.inference.raw_row_parts import RawRowParts
from dlrm_jax.inference.rows import NAME
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.inference.scorer import Scorer
from dlrm_jax.inference.trained_parts import TrainedParts
from dlrm_jax.inference.vocabularies import check_same_data
from dlrm_jax.mesh import as_mesh
from dlrm_jax.training.kept_data import find_kept

_log = logging.getLogger(__name__)

_ROWS = 1 << 18


@dataclasses.dataclass(frozen=True)
class Predictor(TrainedParts, RawRowParts):
    """What predicts raw rows and examples.

    Attributes:
        scorer: model that gives the logits of examples.
        batch_size: largest number of examples predicted at a time, over all devices.
        vocabularies: directory that maps raw values to ids; None if there is none.
        fingerprint: fingerprint of the data of training, which the vocabularies must be of.
        shift: number that probabilities add to the logits, for a model that was trained on a part
            of the negative examples, see `dlrm_jax.training.sampling`.
        schema: meaning of the columns of a stream, which needs no vocabulary; None for others.
    """

    scorer: Scorer
    batch_size: int
    vocabularies: Path | None = None
    fingerprint: str = ""
    shift: float = 0.0
    schema: Schema | None = None

    def __repr__(self) -> str:
        """One line."""
        return f"Predictor({self.scorer})"

    @classmethod
    def load(
        cls,
        run_or_checkpoint: Path | str,
        mesh: Mesh | str = "1x1",
        batch_size: int = 8192,
        model: str | None = None,
        preprocessing: Path | str | None = None,
    ) -> Predictor:
        """Reads parameters and tables, one slab at a time; of an artifact, tables are mapped.

        Args:
            run_or_checkpoint: directory of a checkpoint, named by its step; the workdir of a run,
                of which the best checkpoint counts, or the latest if none was validated; or an
                artifact, see ``python -m dlrm_jax export``.
            mesh: mesh of prediction, or its shape, ``"2x4"``; it may differ from that of training.
                An artifact predicts on one device.
            batch_size: largest number of rows predicted at a time; the mesh must divide it.
            model: class of your own that the checkpoint was trained with, ``"MODULE:CLASS"``, which
                is imported. None for a model of the zoo, and for an artifact, which needs none.
            preprocessing: directory of arrays whose vocabularies the model was trained with. None
                for those that the run or the artifact keeps.

        Raises:
            UserError: there is no checkpoint and no artifact, or it is damaged or of another kind;
                it names a class that ``model`` doesn't, or has dynamic ids of a stream, but no
                schema; the mesh doesn't divide the batch; the vocabularies are of other data.
        """
        given = Path(preprocessing) if preprocessing else None
        path = as_path("run_or_checkpoint", run_or_checkpoint)
        if is_artifact(path):
            return cls(*load_artifact(path, mesh, batch_size, model, given))
        checkpoint, mesh = find_checkpoint(path), as_mesh(mesh)
        config, learner, state, fingerprint, shift, id_rows = load_trained(
            checkpoint, mesh, batch_size, model
        )
        if given:
            check_same_data(given, checkpoint, fingerprint)
        if id_rows:
            scorer = CheckpointScorer(config, learner, state, id_rows)
            return cls(scorer, batch_size, None, fingerprint, shift, id_rows.note.own_schema())
        scorer = CheckpointScorer(config, learner, state)
        return cls(scorer, batch_size, given or find_kept(checkpoint), fingerprint, shift)

    def predict(
        self, rows: Any, shared: Mapping[str, Any] | None = None
    ) -> Float64[np.ndarray, "N *_"]:
        """The probability of label 1 of every row, in order; [N, H] of several labels.

        Those of several labels are in the order of `labels`. Raw rows get the ids of training by
        the code of preprocessing; what isn't in the schema is ignored. The first call reads the
        vocabularies and compiles a program for the number of rows, rounded up to one of
        `batch_sizes`. Later calls use both again.

        Args:
            rows: a list of dicts, one for each row; a frame of polars, or what gives Arrow data,
                such as a frame of pandas; the path of a file, which is read chunk by chunk; or
                examples with ids. Labels aren't read.
            shared: values by column that all rows share, such as those of the user whose candidates
                they are. The rows are dicts of the other columns then, and the shared ones are
                mapped once, and looked up once if the model is an artifact.

        Raises:
            UserError: there are no vocabularies; a column is missing or has another type, a value
                is malformed, or an id out of range; the message names row and column.
        """
        if isinstance(rows, Examples | Split) and not shared:
            return self.predict_examples(rows)
        if isinstance(rows, str | Path) and not shared:
            return self._of_file(Path(rows))
        examples = self.row_encoder.rows(rows, shared)
        return self._in_memory(self._checked(examples), self.features_of(shared or ()))

    def predict_examples(
        self, rows: Examples | Split, shared: Collection[str] = ()
    ) -> Float64[np.ndarray, "N *_"]:
        """As `predict`, of examples with ids.

        Args:
            rows: examples.
            shared: features whose ids are the same in all of them, which may be looked up once; the
                model's names, see `features_of`.
        """
        split = Split((rows,)) if isinstance(rows, Examples) else rows
        self.check_features(split)
        return self._in_memory(split, shared)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, the main one first; ``("label",)`` if there is one."""
        return self.scorer.inputs.outputs

    def _of_file(self, path: Path) -> Float64[np.ndarray, "N *_"]:
        if path.is_dir():
            raise UserError(
                f"rows: expected a file, got the directory {path}; of prepared arrays, give "
                f"examples, such as dlrm_jax.data.directory.load_directory({str(path)!r}).test"
            )
        unseen = self.encoder.unseen_values()
        found = [sigmoid(part.logits, self.shift) for part in self.of_files([path], unseen=unseen)]
        for warning in unseen.warnings():
            _log.warning("%s: %s", path, warning)
        return np.concatenate(found)

    def of_files(
        self,
        paths: Sequence[Path],
        keys: Sequence[str] = (),
        unseen: UnseenValues | None = None,
    ) -> Iterator[Part]:
        """Predicts raw logs of any size; a chunk is encoded while the one before is predicted.

        Args:
            paths: the files, in order.
            keys: columns to pass through.
            unseen: counts of unseen values, to which those of the files are added.

        Raises:
            UserError: as for `predict`; rows of predictions count from 0 over all files.
        """
        first = 0
        for chunk in ahead(self.encoder.files(paths, keys)):
            split = self._checked(chunk.examples)
            if unseen:
                unseen.add(np.asarray(chunk.examples.ids))
            labels = self._own_labels(chunk.examples.labels, self.encoder.labels)
            yield Part(self._all_logits(split, first), labels, split, chunk.keys)
            first += len(split)

    def of_split(self, split: Split, labels: Sequence[str] = ("label",)) -> Iterator[Part]:
        """Predicts arrays, which may be memory maps; their ids aren't checked.

        Args:
            split: the arrays.
            labels: names of their labels.
        """
        for first in range(0, len(split), _ROWS):
            rows = split[first : first + _ROWS]
            own = self._own_labels(rows.labels, labels)
            yield Part(self._all_logits(rows, first), own, rows, pl.DataFrame())

    def _own_labels(
        self, labels: Shaped[np.ndarray, "N *_"], names: Sequence[str]
    ) -> Shaped[np.ndarray, "N *_"]:
        # The label of a model of one has no name, unless its data had others.
        return chosen_labels(labels, names, self.scorer.inputs.labels or names[:1])

    @functools.cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """The numbers of rows that a program is compiled for when it is needed, ascending.

        None if native kernels predict.
        """
        return self.scorer.batch_sizes(self.batch_size)

    def _checked(self, examples: Examples) -> Split:
        split = Split((examples,))
        self.scorer.inputs.check_ids(split, NAME)
        return split

    def _in_memory(self, split: Split, shared: Collection[str]) -> Float64[np.ndarray, "N *_"]:
        size = next((x for x in self.batch_sizes if x >= len(split)), self.batch_size)
        return sigmoid(self._all_logits(split, 0, size, shared), self.shift)

    def _all_logits(
        self,
        split: Split,
        first_row: int,
        batch_size: int | None = None,
        shared: Collection[str] = (),
    ) -> Float32[np.ndarray, "N *_"]:
        logits = self.logits(split, batch_size, first_row, shared)
        each = (len(self.labels),) if len(self.labels) > 1 else ()
        return np.concatenate([np.zeros((0, *each), np.float32), *logits])

    def check_features(self, split: Split) -> None:
        """Checks that examples have the features of the training data, and ids of its tables.

        Raises:
            UserError: they have others, or an id isn't a row of its table; see `check_ids`.
        """
        inputs = self.scorer.inputs
        inputs.check_dense(split)
        inputs.check_ids(split, "examples", inputs.columns)

    def probabilities(
        self, split: Split, *, check: bool = True
    ) -> Iterator[Float64[np.ndarray, "B *_"]]:
        """Yields the probability of label 1 of every example, in order, a batch at a time.

        They are [B], or [B, H] of several labels.

        Args:
            split: examples with the features of the training data.
            check: whether to look for ids out of range first, which reads them once more.

        Raises:
            UserError: the examples have other features, see `check_features`, or a prediction
                isn't finite; the message names its row.
        """
        if check:
            self.check_features(split)
        yield from (sigmoid(logits, self.shift) for logits in self.logits(split))

    def logits(
        self,
        split: Split,
        batch_size: int | None = None,
        first_row: int = 0,
        shared: Collection[str] = (),
    ) -> Iterator[Float32[np.ndarray, "B *_"]]:
        """Yields the logit of every example, in order, a batch at a time; ids aren't checked.

        They are those of the model, without `shift`.

        Args:
            split: examples with the features of the training data.
            batch_size: number of examples predicted at a time; None for that of the predictor.
            first_row: number of the first example, for messages.
            shared: features whose ids are the same in all examples.

        Raises:
            UserError: the examples have another number of dense features, or a prediction isn't
                finite; the message names its row.
        """
        self.scorer.inputs.check_dense(split)
        first = 0
        for logits in self.scorer.logits(split, batch_size or self.batch_size, shared):
            check_finite(logits, split, first, first_row + first)
            yield logits
            first += len(logits)

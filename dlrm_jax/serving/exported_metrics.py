"""Metrics of a trained model, and of its artifact while it is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

import numpy as np
from jaxtyping import Float32

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.notes import BaselineNote
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.errors import UserError
from dlrm_jax.inference.artifact_scorer import ArtifactScorer, inputs_of
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.serving.drift import baseline_of
from dlrm_jax.serving.table_variants import TableVariants
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.training.measures import measures_of

_BATCH = 8192
_MEASURED = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class ExportedMetrics:
    """Metrics of an artifact with some of its tables, and perhaps its layers, quantized.

    Attributes:
        artifact: artifact with layers as they were trained.
        tables: tables in both forms.
        model: trained model.
        data: data of the run.
    """

    artifact: Artifact
    tables: TableVariants
    model: TrainedModel
    data: Dataset

    def auc(self, quantized: Collection[str], artifact: Artifact | None = None) -> float:
        """The AUC of the main label on the validation split.

        Args:
            quantized: tables that are quantized.
            artifact: artifact with other layers; None for those that were trained.

        Raises:
            UserError: the split has labels of one kind alone.
        """
        logits = self._logits(artifact or self.artifact, "validation", quantized)
        found = float(self._metrics("validation", logits)["auc"])
        if math.isnan(found):
            raise UserError(
                "max_auc_loss: expected validation examples of both labels, got one kind alone"
            )
        return found

    def summary(
        self, quantized: Collection[str], artifact: Artifact
    ) -> tuple[dict[str, dict[str, dict[str, float | None]]], BaselineNote | None]:
        """The metrics of each split that has examples, of the trained and the exported model.

        With what the last of them is like, as the exported model predicts it.

        Args:
            quantized: tables that are quantized.
            artifact: artifact with the layers of the exported model.
        """
        found, baseline = {}, None
        for split in _MEASURED:
            if len(self.data.splits[split]):
                logits = self._logits(artifact, split, quantized)
                exported = trained = self._metrics(split, logits)
                baseline = self._baseline(split, logits)
                if quantized or artifact is not self.artifact:
                    trained = self._metrics(split, self._logits(self.artifact, split, ()))
                found[split] = {"trained": _plain(trained), "exported": _plain(exported)}
        return found, baseline

    def _logits(
        self, artifact: Artifact, split: str, quantized: Collection[str]
    ) -> Float32[np.ndarray, "N *_"]:
        scorer = ArtifactScorer(self.tables.read_by(artifact, quantized))
        return np.concatenate([*scorer.logits(self.data.splits[split], _BATCH)])

    def _metrics(self, split: str, logits: Float32[np.ndarray, "N *_"]) -> dict[str, float | int]:
        # Its own metrics may be functions that would be imported.
        measures = measures_of(dataclasses.replace(self.model.config, metrics=()), self.data)
        kept = self.data.kept_negatives.get(split, 1.0)
        return measures(logits, self.data.splits[split], kept)

    def _baseline(self, split: str, logits: Float32[np.ndarray, "N *_"]) -> BaselineNote | None:
        if self.data.kept_negatives.get(split, 1.0) != 1:  # requests have the others, too
            return None
        labels = inputs_of(self.artifact.manifest).outputs
        vocabularies = self.model.vocabularies
        metadata = Metadata.read(vocabularies) if vocabularies else None
        probabilities = sigmoid(logits, self.model.shift)
        return baseline_of(split, self.data.splits[split], probabilities, labels, metadata)


def _plain(metrics: dict[str, float | int]) -> dict[str, float | None]:
    """Metrics as JSON has them, without NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}

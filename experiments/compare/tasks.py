"""The tasks that models are compared on: predicting clicks, or ranking the chosen item first."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.batches import Batch, Batches, TrainBatches
from dlrm_jax.training.config_data import train_batches
from dlrm_jax.training.label_metrics import label_metrics, prefix
from dlrm_jax.training.metrics import binary_metrics
from dlrm_jax.training.ranking import ranking_metrics


class Task(abc.ABC):
    """Data, their batches for training, and metrics.

    Attributes:
        shown: names of the test metrics in the table.
        curve: name of the metric that is drawn over steps.
        chosen_by: name of the validation metric that chooses; smaller is better for a loss.
        ranked_by: name of the test metric that ranks models.
    """

    shown: tuple[str, ...]
    curve: str
    chosen_by: str
    ranked_by: str

    def __init__(self, data: Dataset):
        self.data = data

    def batches(self, config: Config) -> Batches:
        """Training batches in the order of the config's seed, shuffled again in each epoch."""
        return train_batches(config, self.data)

    @abc.abstractmethod
    def metrics(
        self,
        split: str,
        logits: Float[np.ndarray, "N *_"],
        labels: Float[np.ndarray, "N *_"],
        weights: Float[np.ndarray, " N"] | None = None,
    ) -> dict[str, float]:
        """Metrics over all examples of a split."""

    def badness(self, metrics: Mapping[str, Any] | None) -> float:
        """The number that a choice minimizes: infinite without metrics."""
        value = metrics[self.chosen_by] if metrics else None
        if value is None or not math.isfinite(value):
            return math.inf
        return value if self.chosen_by == "log_loss" else -value


class Clicks(Task):
    """The task of predicting the probability of label 1; the main one of several chooses."""

    curve = "accuracy"
    chosen_by = "log_loss"
    ranked_by = "auc"

    def __init__(self, data: Dataset):
        super().__init__(data)
        self.shown = ("log_loss", "auc", "normalized_entropy", "accuracy")
        if len(data.labels) > 1:
            before = [prefix(data.labels, label) for label in data.labels]
            self.shown = tuple(x + metric for x in before for metric in ("log_loss", "auc"))

    def metrics(
        self,
        split: str,
        logits: Float[np.ndarray, "N *_"],
        labels: Float[np.ndarray, "N *_"],
        weights: Float[np.ndarray, " N"] | None = None,
    ) -> dict[str, float]:
        """The metrics of `label_metrics`."""
        del split

        def of_label(logits: np.ndarray, labels: np.ndarray, own: Any) -> dict[str, float | int]:
            return binary_metrics(logits, labels, None if weights is None else weights[own])

        return label_metrics(logits, labels, self.data.labels, of_label)


class Choices(Task):
    """The task of ranking the chosen item above sampled candidates.

    Args:
        data: the three splits. The training split is that of epoch 0; in the others, a user's
            candidates are consecutive, the choice first.
        candidates: number of candidates of a user.
        train: function that makes the training split of an epoch; all epochs have equal length.
    """

    shown = ("hr@10", "ndcg@10")
    curve = chosen_by = ranked_by = "ndcg@10"

    def __init__(self, data: Dataset, candidates: int, train: Callable[[int], Split]):
        super().__init__(data)
        self._candidates, self._train = candidates, train

    def batches(self, config: Config) -> EpochBatches:
        """The training split of each epoch, shuffled."""
        return EpochBatches(self._train, config)

    def metrics(
        self,
        split: str,
        logits: Float[np.ndarray, "N *_"],
        labels: Float[np.ndarray, "N *_"],
        weights: Float[np.ndarray, " N"] | None = None,
    ) -> dict[str, float]:
        """The metrics of `ranking_metrics`; NaN for the training split, which has no candidates."""
        del labels, weights
        if split == "train":
            return dict.fromkeys(self.shown, math.nan)
        return ranking_metrics(logits.reshape(-1, self._candidates))


class EpochBatches:
    """Batches of a training split that ``train`` makes anew for each epoch."""

    def __init__(self, train: Callable[[int], Split], config: Config):
        self.batch_size = config.batch_size
        self._train, self._config = train, config
        self._epoch, self._batches = 0, self._of(0)
        self.steps_per_epoch = self._batches.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        epoch = step // self.steps_per_epoch
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._of(epoch)
        return self._batches[step]

    def _of(self, epoch: int) -> TrainBatches:
        size, seed, window = self._config.batch_size, self._config.seed, self._config.shuffle_window
        return TrainBatches(self._train(epoch), size, seed, window)

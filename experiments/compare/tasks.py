"""The tasks that models are compared on: predicting clicks, or ranking the chosen item first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.batches import Batch, Batches, TrainBatches
from dlrm_jax.training.metrics import binary_metrics
from dlrm_jax.training.ranking import ranking_metrics


@runtime_checkable
class Task(Protocol):
    """Data, their batches for training, and metrics.

    Attributes:
        data: the three splits.
        shown: names of the test metrics in the table.
        curve: name of the metric that is drawn over steps.
        chosen_by: name of the validation metric that chooses; smaller is better for a loss.
    """

    @property
    def data(self) -> Dataset: ...  # noqa: D102
    @property
    def shown(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def curve(self) -> str: ...  # noqa: D102
    @property
    def chosen_by(self) -> str: ...  # noqa: D102

    def batches(self, config: Config) -> Batches:
        """Training batches, in the order of the config's seed."""
        ...

    def metrics(
        self, split: str, logits: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]
    ) -> dict[str, float]:
        """Metrics over all examples of a split."""
        ...


def badness(task: Task, metrics: Mapping[str, Any] | None) -> float:
    """The number that a choice minimizes: infinite without metrics."""
    value = metrics[task.chosen_by] if metrics else None
    if value is None or not math.isfinite(value):
        return math.inf
    return value if task.chosen_by == "log_loss" else -value


@dataclasses.dataclass(frozen=True)
class Clicks:
    """The task of predicting the probability of label 1.

    Attributes:
        data: the three splits.
    """

    data: Dataset
    shown: tuple[str, ...] = ("log_loss", "auc", "normalized_entropy", "accuracy")
    curve: str = "accuracy"
    chosen_by: str = "log_loss"

    def batches(self, config: Config) -> TrainBatches:
        """The training split, shuffled again in each epoch."""
        return TrainBatches(self.data.train, config.batch_size, config.seed, config.shuffle_window)

    def metrics(
        self, split: str, logits: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]
    ) -> dict[str, float]:
        """The metrics of `binary_metrics`."""
        del split
        return binary_metrics(logits, labels)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The task of ranking the chosen item above sampled candidates.

    Attributes:
        data: the three splits. The training split is that of epoch 0; in the others, a user's
            candidates are consecutive, the choice first.
        candidates: number of candidates of a user.
        train: function that makes the training split of an epoch; all epochs have equal length.
    """

    data: Dataset
    candidates: int
    train: Callable[[int], Split]
    shown: tuple[str, ...] = ("hr@10", "ndcg@10")
    curve: str = "ndcg@10"
    chosen_by: str = "ndcg@10"

    def batches(self, config: Config) -> EpochBatches:
        """The training split of each epoch, shuffled."""
        return EpochBatches(self.train, config)

    def metrics(
        self, split: str, logits: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]
    ) -> dict[str, float]:
        """The metrics of `ranking_metrics`; NaN for the training split, which has no candidates."""
        del labels
        if split == "train":
            return dict.fromkeys(self.shown, math.nan)
        return ranking_metrics(logits.reshape(-1, self.candidates))


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
        config = self._config
        return TrainBatches(
            self._train(epoch), config.batch_size, config.seed, config.shuffle_window
        )

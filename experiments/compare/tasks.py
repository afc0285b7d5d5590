"""What models are trained for: to tell clicks, or to rank what was chosen ahead of the rest."""

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
    """Data, how they are trained on, and how models are told apart.

    Attributes:
        data: three splits.
        shown: the test metrics of the table.
        curve: the metric that is drawn over iterations.
        chosen_by: the validation metric that chooses, the lower the better if it's a loss.
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
        """Training batches, by the config's seed."""
        ...

    def metrics(
        self, split: str, logits: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]
    ) -> dict[str, float]:
        """Of all examples of a split."""
        ...


def badness(task: Task, metrics: Mapping[str, Any] | None) -> float:
    """What a choice makes as small as it can: infinite where there is nothing to choose."""
    value = metrics[task.chosen_by] if metrics else None
    if value is None or not math.isfinite(value):
        return math.inf
    return value if task.chosen_by == "log_loss" else -value


@dataclasses.dataclass(frozen=True)
class Clicks:
    """The probability of label 1.

    Attributes:
        data: three splits.
    """

    data: Dataset
    shown: tuple[str, ...] = ("log_loss", "auc", "normalized_entropy", "accuracy")
    curve: str = "accuracy"
    chosen_by: str = "log_loss"

    def batches(self, config: Config) -> TrainBatches:
        """The training split, shuffled anew in each epoch."""
        return TrainBatches(self.data.train, config.batch_size, config.seed, config.shuffle_window)

    def metrics(
        self, split: str, logits: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]
    ) -> dict[str, float]:
        """See `binary_metrics`."""
        del split
        return binary_metrics(logits, labels)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choice among candidates that weren't chosen, which are drawn anew in each epoch.

    Attributes:
        data: three splits; the training split is that of epoch 0, and in the others a user's
            candidates follow one another, the choice first.
        candidates: of a user.
        train: makes the training split of an epoch; all have as many examples.
    """

    data: Dataset
    candidates: int
    train: Callable[[int], Split]
    shown: tuple[str, ...] = ("hr@10", "ndcg@10")
    curve: str = "ndcg@10"
    chosen_by: str = "ndcg@10"

    def batches(self, config: Config) -> EpochBatches:
        """Each epoch's own training split, shuffled."""
        return EpochBatches(self.train, config)

    def metrics(
        self, split: str, logits: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]
    ) -> dict[str, float]:
        """See `ranking_metrics`; those of the training split, which has no candidates, are NaN."""
        del labels
        if split == "train":
            return dict.fromkeys(self.shown, math.nan)
        return ranking_metrics(logits.reshape(-1, self.candidates))


class EpochBatches:
    """Batches of a training split that changes from epoch to epoch.

    Args:
        train: makes the split of an epoch.
        config: that says batch size, seed and window.
    """

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

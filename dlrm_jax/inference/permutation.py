"""Importance of features by permutation: what a model loses without each one.

Breiman, 2001, "Random forests"; Fisher, Rudin and Dominici, 2019, arXiv 1801.01489.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.scored_rows import ScoredRows
from dlrm_jax.signals import check


@dataclasses.dataclass(frozen=True)
class Importance:
    """What a model loses if a feature's values are dealt out to the rows anew.

    Attributes:
        feature: name of the feature.
        auc_losses: AUC as it is, less the AUC after each permutation. More is more important; about
            0, or less, says that the model doesn't need the feature.
        log_loss_gain: mean increase of the log loss.
    """

    feature: str
    auc_losses: tuple[float, ...]
    log_loss_gain: float

    @property
    def auc_loss(self) -> float:
        """The mean over the permutations."""
        return float(np.mean(self.auc_losses))


def importances(
    predictor: Predictor,
    rows: ScoredRows,
    names: Sequence[str],
    dense_names: Sequence[str],
    times: int,
    seed: int,
) -> list[Importance]:
    """The importance of each feature, the most important one first.

    Two features that say the same look unimportant, since each is left to the model when the other
    is permuted.

    Args:
        predictor: model; all rows are predicted by one program, compiled once.
        rows: rows; for each feature all are predicted ``times`` times.
        names: names of the categorical features; the ids of a bag stay together.
        dense_names: names of the dense features.
        times: number of permutations of each feature.
        seed: seed of the permutations.
    """
    before, examples = rows.metrics(), rows.examples
    starts = np.cumsum([0, *predictor.config.table_bag_lengths]).tolist()
    features = [
        *((name, "ids", slice(*starts[i : i + 2])) for i, name in enumerate(names)),
        *((name, "dense", slice(i, i + 1)) for i, name in enumerate(dense_names)),
    ]
    found = []
    for number, (name, array, columns) in enumerate(features):
        losses, gains = [], []
        for repeat in range(times):
            check()
            order = np.random.default_rng([seed, number, repeat]).permutation(len(rows))
            permuted = np.array(getattr(examples, array))
            permuted[:, columns] = permuted[order, columns]
            after = rows.predicted(predictor, **{array: permuted}).metrics()
            losses.append(before["auc"] - after["auc"])
            gains.append(after["log_loss"] - before["log_loss"])
        found.append(Importance(name, tuple(losses), float(np.mean(gains))))
    return sorted(found, key=lambda each: np.nan_to_num(-each.auc_loss))

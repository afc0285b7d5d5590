"""Which precision the layers of an artifact have: the shortest that a loss of AUC allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from dlrm_jax.artifact.dense_note import Precision

_SHORTER: tuple[Precision, ...] = ("int8", "bfloat16", "float32")
"""From the shortest on."""

AucOf = Callable[[Precision], float]
"""A function of the precision of the layers; float32 is that of training."""


@dataclasses.dataclass(frozen=True)
class LayerChoice:
    """The precision of the layers, and why.

    Attributes:
        precision: precision that they have.
        losses: AUC that each precision would lose that was tried, the tables' loss included.
    """

    precision: Precision
    losses: dict[Precision, float]


def choose_layers(
    precision: Precision, trained_auc: float, auc_of: AucOf, max_loss: float
) -> LayerChoice:
    """Takes a precision, or the next longer one whose loss is tolerated.

    Args:
        precision: precision that is wanted.
        trained_auc: AUC of the trained model.
        auc_of: AUC on the validation split, with the tables that were chosen.
        max_loss: AUC that may be lost by tables and layers together. Layers in float32 lose none.
    """
    losses: dict[Precision, float] = {}
    for each in _SHORTER[_SHORTER.index(precision) : -1]:
        losses[each] = trained_auc - auc_of(each)
        if losses[each] <= max_loss:
            return LayerChoice(each, losses)
    return LayerChoice("float32", losses)

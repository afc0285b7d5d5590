"""Which tables are quantized: as many as a tolerated loss of AUC allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

AucOf = Callable[[Collection[str]], float]
"""A function of the tables that are quantized; the others have the rows of training."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The tables that are quantized, and why.

    Attributes:
        quantized: tables that are.
        gains: AUC that each table brings back if it alone has the rows of training; empty if all
            tables could be quantized, so that nothing was compared.
        loss: AUC that is lost.
        loss_of_all: AUC that would be lost with all tables quantized.
    """

    quantized: tuple[str, ...]
    gains: dict[str, float]
    loss: float
    loss_of_all: float


def choose_tables(tables: Sequence[str], auc_of: AucOf, max_loss: float) -> Choice:
    """Quantizes all tables, and puts back those that cost most until the loss is tolerated.

    Args:
        tables: names of the tables.
        auc_of: AUC on the validation split.
        max_loss: AUC that may be lost.
    """
    trained = auc_of(())
    loss = loss_of_all = trained - auc_of(tables)
    quantized, gains = list(tables), {}
    if loss > max_loss:
        for name in tables:
            without = trained - auc_of([x for x in tables if x != name])
            gains[name] = loss_of_all - without
        for name in sorted(tables, key=lambda name: -gains[name]):
            quantized.remove(name)
            loss = trained - auc_of(quantized)
            if loss <= max_loss:
                break
    return Choice(tuple(quantized), gains, loss, loss_of_all)

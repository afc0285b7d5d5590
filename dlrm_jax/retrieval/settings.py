"""The settings of two towers besides those of tables and training, which `Config` has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

from dlrm_jax.config_fields import check_field, field
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """What two towers read and learn. Every field is a flag of ``experiments.two_tower``."""

    user_columns: tuple[str, ...] = field(
        (), "Columns of the user's tower, categorical or dense; such as user_id,last_viewed,device."
    )
    item_columns: tuple[str, ...] = field(
        (), "Columns of the item's tower, categorical or dense; such as item_id,category."
    )
    user_id: str = field(
        "",
        "User column that tells users apart in the users' file; without it, the first one with a "
        "single id; such as user_id.",
    )
    item_id: str = field(
        "",
        "Item column that tells items apart; without it, the first of item_columns; such as "
        "item_id.",
    )
    exclude: str = field(
        "",
        "Column with the vocabulary of the items, whose items aren't ranked for its row; such as "
        "last_viewed.",
    )
    tower: tuple[int, ...] = field(
        (64, 32), "Widths of each tower's layers, the vector's at the end; such as 128,64.", 1
    )
    temperature: float = field(
        0.1, "Number that the product of two vectors is divided by in the softmax; such as 0.05."
    )
    negatives: int = field(
        1024, "Negatives of a batch that are drawn from all items; 0 for none; such as 4096.", 0
    )
    sampler: Literal["uniform", "frequency"] = field(
        "uniform", "How these are drawn: all items alike, or by their training rows."
    )
    table_learning_rate: float = field(
        0.1, "Learning rate of the tables that table_optimizers doesn't name; such as 0.05."
    )
    recall_at: tuple[int, ...] = field(
        (10, 100),
        "Values of k in recall@k and ndcg@k; the first recall decides which checkpoint is best; "
        "such as 10,50.",
        1,
    )

    def __post_init__(self) -> None:
        hints = get_type_hints(RetrievalSettings)
        for each in dataclasses.fields(self):
            check_field(each, getattr(self, each.name), hints[each.name])
        for name in ("temperature", "table_learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("tower", "recall_at"):
            if not getattr(self, name):
                raise UserError(f"{name}: expected at least one number, got none")


# Fields that were added to `RetrievalSettings` after the first version of saved ones, each with the
# value that means what was done before. It stays when the default changes.
_ADDED: dict[str, Any] = {"table_learning_rate": 0.1}


def saved_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint keeps, with those that are newer than it.

    Args:
        saved: fields of settings, as JSON gives them; some may be left out.

    Raises:
        UserError: a later version has written them.
    """
    known = {each.name for each in dataclasses.fields(RetrievalSettings)}
    if unknown := saved.keys() - known:
        raise UserError(
            f"it was written by a later version of this program: it has the setting "
            f"{', '.join(sorted(unknown))}, which this one lacks; use that version"
        )
    return {**_ADDED, **saved}

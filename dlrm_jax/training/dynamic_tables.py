"""The tables of a config whose ids get rows and lose them while training."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from dlrm_jax.config import Config
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.errors import UserError

_KINDS = {
    "admit_count": int, "admit_probability": float, "evict": str, "evict_share": float,
    "max_age": int, "defaults": int, "parts": int,
}  # fmt: skip


class DynamicRows(NamedTuple):
    """The rows of a table with dynamic ids, defaults included, and their rules."""

    rows: int
    ids: DynamicIds


def dynamic_rows(config: Config) -> dict[str, DynamicRows]:
    """The tables with dynamic ids, by name.

    Raises:
        UserError: a setting isn't of the form ROWS:RULE=VALUE:…, or a rule is out of range.
    """
    return {name: _read(name, text) for name, text in config.per_table("dynamic_ids").items()}


def _read(table: str, text: str) -> DynamicRows:
    count, *rules = text.split(":")
    given: dict[str, Any] = {}
    for rule in rules:
        name, separator, value = rule.partition("=")
        if name not in _KINDS or not separator or name in given:
            raise UserError(
                f"dynamic_ids: expected rules of {table} among {', '.join(_KINDS)}, each once, as "
                f"admit_count=2, got {rule!r}"
            )
        given[name] = _value(table, name, value)
    rows = _value(table, "rows", count)
    try:
        ids = DynamicIds(**given)
        ids.check_rows(rows)
    except UserError as error:
        raise UserError(f"dynamic_ids: {table}: {error}") from error
    return DynamicRows(rows, ids)


def _value(table: str, name: str, text: str) -> Any:
    kind = _KINDS.get(name, int)
    try:
        return float(Fraction(text)) if kind is float else kind(text)
    except (ValueError, ZeroDivisionError):
        expected = "an integer" if kind is int else "a number, such as 0.1 or 1/32,"
        raise UserError(
            f"dynamic_ids: expected {expected} for the {name} of {table}, got {text!r}"
        ) from None


def id_maps_of(collection: EmbeddingCollection, seed: int) -> IdMaps | None:
    """New maps of a collection; None if no table has dynamic ids.

    Args:
        collection: tables.
        seed: seed of the run.
    """
    return IdMaps(collection, seed) if any(x.ids for x in collection.tables.values()) else None

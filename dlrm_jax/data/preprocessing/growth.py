"""Data whose vocabularies continue those of earlier data: what must be as it was there."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from dlrm_jax.data.metadata import METADATA, Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.errors import UserError

_OF_VALUES = ("min_count", "max_rows", "drop_negatives")
_OF_COLUMNS = ("label", "label_at_least", "dense", "dense_transform")

_log = logging.getLogger(__name__)


def min_count_before(directory: Path) -> int:
    """The ``min_count`` of prepared data, which those that grow from them keep.

    They don't keep ``max_rows``: a table that is full would take no new value on any later day.

    Args:
        directory: directory of prepared data, or a copy of its vocabularies.
    """
    return Options.from_json(Metadata.read(directory).made_from["options"]).min_count


def check_growth(options: Options, grown: Metadata) -> None:
    """Checks that vocabularies can go on with other options; what else differs is a warning.

    Args:
        options: options of the new data.
        grown: description of the data that grow.

    Raises:
        UserError: ids or numbers would mean something else.
    """
    schema, columns = options.schema, list(options.schema.categorical)
    if grown.columns != columns:
        raise UserError(
            f"grow: the data that grow have the columns {grown.columns}, the schema has {columns}; "
            f"give the same columns in the same order"
        )
    if grown.shared != schema.shared:
        raise UserError(
            f"grow: the data that grow share the vocabularies {json.dumps(grown.shared)}, the "
            f"schema {json.dumps(dict(schema.shared))}; share the same ones"
        )
    noted = grown.made_from["options"]
    earlier = Options.from_json(noted)
    _check_numbers(options, earlier)
    for option in ("compatible", "multi_hot_sizes"):
        if option not in noted:
            raise UserError(f"grow: {METADATA} is damaged, it lacks the option {option}")
        if getattr(options, option) or noted[option]:
            raise UserError(f"grow: the ids of data with the option {option} can't grow")
    same = (options.rule, options.seed) == (earlier.rule, earlier.seed)
    if options.rule.kind == "user" and not same:
        raise UserError(
            f"grow: the data that grow have --split={earlier.rule} --seed={earlier.seed}, and "
            f"--split={options.rule} --seed={options.seed} would test by values of "
            f"{options.rule.column} that have trained; give the same, or another kind of split"
        )
    pairs = {name: (getattr(earlier, name), getattr(options, name)) for name in _OF_VALUES}
    for name in _OF_COLUMNS:
        pairs[name] = (getattr(earlier.schema, name), getattr(schema, name))
    for name, (before, now) in pairs.items():
        if before != now:
            _log.warning(
                "grow: %s is %s here, and %s in the data that grow",
                name,
                json.dumps(now, default=dict),
                json.dumps(before, default=dict),
            )


def _check_numbers(options: Options, earlier: Options) -> None:
    """Checks that numbers mean the same as in the data that grow: bins and scales are kept."""
    for what, before, now in (
        ("bins", dict(earlier.schema.bins), dict(options.schema.bins)),
        ("columns to standardize", earlier.schema.standardized, options.schema.standardized),
    ):
        if before != now:
            raise UserError(
                f"grow: expected the {what} of the data that grow, {json.dumps(before)}, got "
                f"{json.dumps(now)}"
            )

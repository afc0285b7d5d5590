"""The numbers of a report on a run, as the JSON file beside its page has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dlrm_jax.console import status
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.statistics import Column, measure
from dlrm_jax.inference.permutation import importances
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.scored_rows import ScoredRows, evenly_spaced_rows, score
from dlrm_jax.inference.slices import by_day, by_range, by_value, calibration_error, reliability
from dlrm_jax.inference.table_rows import table_rows
from dlrm_jax.inference.value_names import ValueNames
from dlrm_jax.training.losses import group_column

_BUCKETS = 20
_VALUES, _RANGES = 5, 4
_PERMUTED_ROWS = 1 << 16
_HOT_ROWS = 5

_Json = dict[str, Any]


def measure_data(
    predictor: Predictor,
    data: Dataset,
    names: ValueNames,
    most: int,
    permutations: int,
) -> _Json:
    """Everything that needs the examples: metrics, calibration, days, importances, slices, tables.

    Args:
        predictor: model of the run.
        data: data of the run.
        names: names of features and values.
        most: largest number of rows of a split that are predicted.
        permutations: number of permutations of each feature; 0 for no importances.
    """
    metadata = Metadata.read(data.directory) if data.directory else None
    scored = {}
    for name, split in data.splits.items():
        if len(split):
            days = _days_of(data, metadata, name)
            kept = data.kept_negatives.get(name, 1.0)
            scored[name] = score(predictor, name, split, days, most, kept)
            status(f"{name}: {len(scored[name]):,} of {len(split):,} rows predicted")
    in_order = [scored[x] for x in ("test", "validation", "train") if x in scored]
    held_out = next((rows for rows in in_order if rows.weights.any()), in_order[0])
    buckets = reliability(held_out, _BUCKETS)
    found: _Json = {
        "predicted": {
            name: {"rows": rows.total, **rows.metrics()} for name, rows in scored.items()
        },
        "held_out": held_out.split,
        "are_probabilities": group_column(predictor.config.loss) is None,
        "several_labels": held_out.examples.labels.ndim > 1,
        "calibration": {
            "error": calibration_error(buckets),
            "buckets": [dataclasses.asdict(each) for each in buckets],
        },
        "days": _by_day(scored, names.days or _numbered_days(data)),
        "slices": _slices(predictor, held_out, names),
        "missing": [
            {"feature": feature, "share": missing, "counts_as": names.counts_as(feature)}
            for feature, missing in names.missing.items()
            if missing
        ],
        "importances": None,
    }
    if permutations:
        sample = held_out[evenly_spaced_rows(len(held_out), _PERMUTED_ROWS)]
        seed = predictor.config.seed
        ranked = importances(predictor, sample, names.categorical, names.dense, permutations, seed)
        found["importances"] = {
            "rows": len(sample),
            "permutations": permutations,
            "features": [{**dataclasses.asdict(x), "auc_loss": x.auc_loss} for x in ranked],
        }
        status(f"importances of {len(ranked)} features from {len(sample):,} rows")
    columns = measure(data, metadata).columns
    found["tables"] = measure_tables(predictor, names, columns)
    return found


def measure_tables(
    predictor: Predictor, names: ValueNames, columns: Sequence[Column] | None = None
) -> list[_Json]:
    """What `table_rows` finds, with the values of hot rows; without ``columns`` there are none."""
    found = []
    rows_of = dict(zip(names.categorical, predictor.config.table_rows, strict=True))
    for table in table_rows(predictor, columns, _HOT_ROWS):
        # The rows of a compressed table are of several values each.
        whole = table.rows == rows_of[table.owner]
        ids = [hot.row for hot in table.hot]
        values = names.values(table.owner, ids) if whole else dict.fromkeys(ids, "")
        as_json = dataclasses.asdict(table)
        for hot in as_json["hot"]:
            hot["value"] = values[hot["row"]]
        found.append(as_json)
    order = list(predictor.learner.collection.tables)
    return sorted(found, key=lambda table: order.index(table["table"]))


def _days_of(data: Dataset, metadata: Metadata | None, name: str) -> list[int]:
    """The number of the day that each part of a split is of."""
    if metadata:
        return [day for day, _, _ in metadata.splits[name]]
    # TorchRec's last day is halved for validation and test.
    first = 0 if name == "train" else len(data.train.days)
    return [first + i * (name == "train") for i in range(len(data.splits[name].days))]


def _numbered_days(data: Dataset) -> list[str]:
    """The names of days without dates; none of data without days, such as generated ones."""
    count = len(data.train.days)
    return [f"day {i}" for i in range(count + 1)] if count > 1 else []


def _by_day(scored: Mapping[str, ScoredRows], names: Sequence[str]) -> list[_Json]:
    if not names:
        return []
    return [
        {"day": names[day], "number": day, "split": split, **metrics}
        for split, rows in scored.items()
        for day, metrics in by_day(rows).items()
    ]


def _slices(predictor: Predictor, rows: ScoredRows, names: ValueNames) -> list[_Json]:
    """The slices of each feature, in the order of the features."""
    found: list[_Json] = []
    lengths = predictor.config.table_bag_lengths
    values: dict[str, list[Any]] = {}
    for each in by_value(rows, names.categorical, lengths, _VALUES):
        values.setdefault(each.feature, []).append(each)
    for feature, slices in values.items():
        texts = names.values(feature, [each.value for each in slices])
        found += [{"feature": feature, "value": texts[x.value], **x.metrics} for x in slices]
    for each in by_range(rows, names.dense, _RANGES):
        assert isinstance(each.value, tuple)
        text = names.range_of(each.feature, *each.value)
        found.append({"feature": each.feature, "value": text, **each.metrics})
    return found

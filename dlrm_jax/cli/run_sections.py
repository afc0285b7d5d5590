"""The sections of a run's page that need its data: calibration, days, importances, slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrm_jax.cli.page import Page
from dlrm_jax.cli.run_pictures import (
    draw_calibration,
    draw_days,
    draw_importances,
    draw_slices,
    furthest,
)
from dlrm_jax.cli.shown import counted, metric_name, number, share, shortened

_Json = Mapping[str, Any]

_OF_ROWS = ("examples", "label_rate", "prediction", "calibration", "deviation", "log_loss",
            "normalized_entropy", "auc")  # fmt: skip
_OF_ORDER = ("examples", "label_rate", "auc")  # the others compare predictions with labels
_LONG = 12  # lines that a table shows without a click


def calibration(page: Page, data: _Json) -> None:
    """Mean label by mean prediction."""
    held_out = data["predicted"][data["held_out"]]
    found = data["calibration"]
    page.heading("Calibration")
    if not found["buckets"]:
        page.text("No row that was predicted has a weight.")
        return
    if not data["are_probabilities"]:
        page.text(
            "The loss compares rows of a group with each other, so predictions are an order and no "
            "probabilities: there is no calibration."
        )
        return
    page.text(
        f"{_rows(held_out)} of the {data['held_out']} split, in {len(found['buckets'])} buckets of "
        f"equal counts by their prediction. The mean prediction is {share(held_out['prediction'])} "
        f"where the share of label 1 is {share(held_out['label_rate'])}: a calibration of "
        f"{number(held_out['calibration'])}. Predictions are {share(found['error'])} from the "
        f"label rate of their bucket on average. Lines are 95 % intervals."
    )
    if data["several_labels"]:
        page.text("This and what follows is of the main label, of the rows that have it.")
    if data["held_out"] != "test":
        page.text(f"There is no test split: this and what follows is of {data['held_out']}.")
    picture = "points: the share of label 1 by mean prediction, and their ratio by bucket"
    page.picture(draw_calibration(found["buckets"]), picture)
    header = ["bucket", "rows", "mean prediction", "label 1", "95 % from", "to"]
    rows = [
        [str(i), f"{x['examples']:,}",
         *(share(x[key]) for key in ("prediction", "label_rate", "low", "high"))]
        for i, x in enumerate(found["buckets"], 1)
    ]  # fmt: skip
    page.table(header, rows, folded="all buckets")


def days(page: Page, data: _Json) -> None:
    """Metrics of each day, in each split that has rows of it."""
    page.heading("Metrics by day")
    found = data["days"]
    if not found:
        page.text("The data have no days.")
        return
    sampled = {x: y for x, y in data["predicted"].items() if y["rows"] > y["examples"]}
    if sampled:
        counts = ", ".join(f"{x}: {_rows(y)}" for x, y in sampled.items())
        page.text(f"Of rows that are evenly spaced in their split. {counts}.")
    if len({x["day"] for x in found}) > 1 and data["are_probabilities"]:
        picture = "lines: AUC by day, and the mean prediction beside the share of label 1"
        page.picture(draw_days(found), picture)
    page.table(
        ["day", "split", *_metric_headers(data)],
        [[x["day"], x["split"], *_metric_cells(x, data)] for x in found],
        texts=2,
        folded=f"all {len(found)} days and splits" if len(found) > _LONG else "",
    )


def feature_importances(page: Page, data: _Json) -> None:
    """What the model loses without each feature."""
    page.heading("Importance of the features")
    found = data["importances"]
    if found is None:
        page.text("Left out by --permutations=0.")
        return
    page.text(
        f"How much lower the AUC is if the values of one feature are permuted among "
        f"{found['rows']:,} rows of the {data['held_out']} split: the mean over "
        f"{counted(found['permutations'], 'permutation')}. Features that say the same look "
        f"unimportant, since the model still has the others when one is permuted."
    )
    features = found["features"]
    if all(x["auc_loss"] is None for x in features):
        page.text("The rows have one label only, so there is no AUC.")
        return
    page.picture(draw_importances(features), "bars: loss of AUC by feature")
    rows = [[x["feature"], number(x["auc_loss"]), number(x["log_loss_gain"])] for x in features]
    header = ["feature", "loss of AUC", "gain of log loss"]
    page.table(header, rows, folded=f"all {len(features)} features")


def slices(page: Page, data: _Json) -> None:
    """Metrics of the rows that have a value, or are in a range."""
    page.heading("Metrics by slice")
    found = data["slices"]
    page.text(
        "The values of each categorical feature that most rows have, and ranges of each dense "
        "feature with equally many rows. A row with several values counts for each."
    )
    if data["are_probabilities"]:
        page.text(
            "Deviation is the number of labels 1 less the sum of predictions, in standard "
            "deviations: beyond 3 it is hardly chance. The picture shows the slices that deviate "
            "most."
        )
    if missing := [
        f"{x['feature']}: {share(x['share'])} of all rows, which count as {x['counts_as']}"
        for x in data["missing"]
    ]:
        page.text(
            f"Missing numbers have no slice of their own. {'; '.join(missing)}. They are in the "
            f"slice of that number."
        )
    if not data["has_values"]:
        page.text("The run has no vocabularies, so values are shown as ids.")
    if data["are_probabilities"] and (worst := furthest(found)):
        picture = "points: mean prediction and share of label 1 by slice"
        page.picture(draw_slices(worst), picture)
    rows = [[x["feature"], shortened(x["value"]), *_metric_cells(x, data)] for x in found]
    header = ["feature", "value", *_metric_headers(data)]
    page.table(header, rows, texts=2, folded=f"all {len(rows)} slices")


def _metric_headers(data: _Json) -> list[str]:
    return [metric_name(name) for name in _shown(data)]


def _metric_cells(found: _Json, data: _Json) -> list[str]:
    form = {"examples": lambda x: f"{x:,}", "label_rate": share, "prediction": share,
            "deviation": lambda x: number(x, 1)}  # fmt: skip
    return [form.get(name, number)(found[name]) for name in _shown(data)]


def _shown(data: _Json) -> tuple[str, ...]:
    return _OF_ROWS if data["are_probabilities"] else _OF_ORDER


def _rows(found: _Json) -> str:
    if found["rows"] > found["examples"]:
        return f"{found['examples']:,} of {found['rows']:,} rows"
    return f"{found['rows']:,} rows"

"""The page of a run, from its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlrm_jax.cli.page import Page
from dlrm_jax.cli.pictures import percent
from dlrm_jax.cli.run_pictures import (
    draw_calibration,
    draw_curves,
    draw_days,
    draw_importances,
    draw_slices,
    furthest,
)
from dlrm_jax.training.metrics import METRICS

_Json = Mapping[str, Any]

_PANELS = 5  # besides that of the loss
_NOT_DRAWN = ("step", "split", "examples", "log_loss", "accuracy", "normalized_entropy")
_OF_ROWS = ("examples", "label_rate", "prediction", "calibration", "deviation", "log_loss",
            "normalized_entropy", "auc")  # fmt: skip
_HEADERS = {"examples": "rows", "label_rate": "label 1", "prediction": "mean prediction",
            "log_loss": "log loss", "normalized_entropy": "normalized entropy",
            "auc": "AUC"}  # fmt: skip


def run_page(numbers: _Json) -> Page:
    """The page with these numbers, see `run_report`; what they lack is said."""
    page = Page(f"Run report: {numbers['name']}")
    _overview(page, numbers)
    _curves(page, numbers)
    data = numbers["data"]
    if data is None:
        page.heading("Calibration, days, importances, slices")
        page.text(numbers["without_data"])
    else:
        _calibration(page, data)
        _days(page, data)
        _importances(page, data)
        _slices(page, data)
    _tables(page, numbers)
    _config(page, numbers)
    _origin(page, numbers)
    return page


def _overview(page: Page, numbers: _Json) -> None:
    summary = numbers["summary"]
    page.text(
        f"Model {numbers['config']['model']} of {len(numbers['tables'])} tables, checkpoint of "
        f"step {numbers['step']:,}: {numbers['why_this_step']}."
    )
    if summary is None:
        page.text("There is no summary.json: the run goes on, or has ended before its end.")
        return
    splits = {x: summary[x] for x in ("train", "validation", "test", "test_of_last") if x in summary}
    names = {"test_of_last": f"test, step {summary['steps']:,}"}
    if summary.get("best_step") in (None, summary["steps"]):
        splits.pop("test_of_last", None)  # the same numbers
    others = dict.fromkeys(
        x for each in splits.values() for x in each if x not in (*METRICS, "examples")
    )
    header = ["", *METRICS, *others, "examples"]
    rows = [
        [names.get(name, name), *(number(each.get(x)) for x in header[1:-1]),
         f"{each['examples']:,}"]
        for name, each in splits.items()
    ]  # fmt: skip
    page.table(header, rows)
    if absent := {"validation", "test"} - splits.keys():
        page.text(f"The data have no examples for {' and '.join(sorted(absent))}.")
    speed = summary.get("examples_per_second")
    teacher = summary.get("teacher_auc")
    facts = {
        "steps": f"{summary['steps']:,}" + ", stopped early" * bool(summary.get("stopped_early")),
        "best step": "none" if summary.get("best_step") is None else f"{summary['best_step']:,}",
        "speed in training": f"{speed:,.0f} examples/s" if speed else "unknown",
        "mesh": f"{summary['mesh']}, {summary['devices']}",
        "batch size": f"{summary['batch_size']:,}",
        "preset": summary.get("preset") or "none",
    }
    if teacher:
        facts["best possible test AUC, that of the teacher"] = f"{teacher:.5f}"
    page.table((), list(facts.items()), texts=2)


def _curves(page: Page, numbers: _Json) -> None:
    page.heading("Learning curves")
    record = numbers["record"]
    if not record:
        page.text("There is no metrics.jsonl, so there are no curves.")
        return
    best = numbers["config"]["best_metric"]
    known = dict.fromkeys(
        name
        for line in record
        if line["split"] == "validation"
        for name, value in line.items()
        if isinstance(value, float) and name not in _NOT_DRAWN
    )
    panels = [best] * (best in ("accuracy", "normalized_entropy") and bool(known)) + list(known)
    cuts = [line for line in record if line["split"] == "learning_rate"]
    if cuts:
        listed = ", ".join(f"{line['factor']:g} from step {line['step']:,}" for line in cuts)
        page.text(f"Factor of the learning rate: {listed}.")
    if not known:
        page.text("There was no validation.")
    figure = draw_curves(record, numbers["best_step"], panels[:_PANELS])
    page.picture(figure, "lines: training loss and validation metrics by step")
    if left_out := panels[_PANELS:]:
        page.text(f"In metrics.jsonl alone: {', '.join(left_out)}.")


def _calibration(page: Page, data: _Json) -> None:
    held_out = data["predicted"][data["held_out"]]
    found = data["calibration"]
    page.heading("Calibration")
    page.text(
        f"{_rows(held_out)} of the {data['held_out']} split, in {len(found['buckets'])} buckets of "
        f"equal counts by their prediction. The mean prediction is {share(held_out['prediction'])} "
        f"where the share of label 1 is {share(held_out['label_rate'])}: a calibration of "
        f"{number(held_out['calibration'])}. Predictions are {share(found['error'])} from the "
        f"label rate of their bucket on average. Lines are 95 % intervals."
    )
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


def _days(page: Page, data: _Json) -> None:
    page.heading("Metrics by day")
    days = data["days"]
    if not days:
        page.text("The data have no days.")
        return
    sampled = {x: y for x, y in data["predicted"].items() if y["rows"] > y["examples"]}
    if sampled:
        counts = ", ".join(f"{x}: {_rows(y)}" for x, y in sampled.items())
        page.text(f"Of rows that are evenly spaced in their split. {counts}.")
    if len({x["day"] for x in days}) > 1:
        picture = "lines: AUC by day, and the mean prediction beside the share of label 1"
        page.picture(draw_days(days), picture)
    page.table(
        ["day", "split", *_metric_headers()],
        [[x["day"], x["split"], *_metric_cells(x)] for x in days],
        texts=2,
        folded=f"all {len(days)} days and splits" if len(days) > 12 else "",
    )


def _importances(page: Page, data: _Json) -> None:
    page.heading("Importance of the features")
    found = data["importances"]
    if found is None:
        page.text("Left out by --permutations=0.")
        return
    page.text(
        f"What is lost if the values of one feature are dealt out to the rows anew: AUC less AUC "
        f"with the feature permuted, the mean over {found['permutations']} permutations of "
        f"{found['rows']:,} rows. Features that say the same look unimportant, since each of them "
        f"makes up for the others."
    )
    features = found["features"]
    if all(x["auc_loss"] is None for x in features):
        page.text("The rows have one label only, so there is no AUC.")
        return
    page.picture(draw_importances(features), "bars: loss of AUC by feature")
    rows = [[x["feature"], number(x["auc_loss"]), number(x["log_loss_gain"])] for x in features]
    header = ["feature", "loss of AUC", "gain of log loss"]
    page.table(header, rows, folded=f"all {len(features)} features")


def _slices(page: Page, data: _Json) -> None:
    page.heading("Metrics by slice")
    slices = data["slices"]
    page.text(
        "The values of each categorical feature that most rows have, and ranges of each dense "
        "feature with equally many rows. A row with several values counts for each. Deviation is "
        "the number of labels 1 less the sum of predictions, in standard deviations: beyond 3 it "
        "is hardly chance. The picture shows the slices that deviate most."
    )
    if not data["has_values"]:
        page.text("The run has no vocabularies, so values are shown as ids.")
    if worst := furthest(slices):
        picture = "points: mean prediction and share of label 1 by slice"
        page.picture(draw_slices(worst), picture)
    rows = [[x["feature"], shortened(x["value"]), *_metric_cells(x)] for x in slices]
    header = ["feature", "value", *_metric_headers()]
    page.table(header, rows, texts=2, folded=f"all {len(rows)} slices")


def _tables(page: Page, numbers: _Json) -> None:
    page.heading("Tables")
    tables, has_data = numbers["tables"], numbers["data"] is not None
    page.text(
        "Norms are Euclidean norms of rows. A row that training never reads has its initial "
        "values." if has_data else
        "Norms are Euclidean norms of rows. Without the data it isn't known which rows are read."
    )  # fmt: skip
    header = ["table", "rows", "dim", "placement", "norm: least", "median", "99 %", "largest",
              "zero rows"]  # fmt: skip
    header += ["never read", "share", "their median norm"] if has_data else []
    rows = []
    for x in tables:
        row = [x["table"], f"{x['rows']:,}", str(x["dim"]), x["placement"],
               *map(number, x["norms"]), f"{x['zero']:,}"]  # fmt: skip
        if has_data:
            row += [f"{x['unread']:,}", percent(x["unread"] / x["rows"]),
                    number(x["median_unread_norm"])]  # fmt: skip
        rows.append(row)
    page.table(header, rows)
    hot = [
        [x["table"], shortened(row["value"]) or f"row {row['row']:,}", f"{row['row']:,}",
         f"{row['reads']:,}", percent(row["share"]), number(row["norm"])]
        for x in tables
        for row in x["hot"]
    ]  # fmt: skip
    if hot:
        page.text("The rows that training reads most:")
        header = ["table", "value", "row", "reads", "share of the table's", "norm"]
        page.table(header, hot, texts=2, folded=f"{len(hot)} hot rows")


def _config(page: Page, numbers: _Json) -> None:
    page.heading("Settings")
    config, defaults = numbers["config"], numbers["defaults"]
    changed = [x for x in config if config[x] != defaults[x]]
    page.text("What differs from the defaults:")
    rows = [[x, as_text(config[x]), as_text(defaults[x])] for x in changed]
    page.table(["setting", "value", "default"], rows, texts=3)
    others = [[x, as_text(config[x])] for x in config if x not in changed]
    page.table((), others, texts=2, folded=f"{len(others)} settings at their defaults")


def _origin(page: Page, numbers: _Json) -> None:
    page.heading("Where it comes from")
    facts = [("workdir", numbers["workdir"]), ("checkpoint", numbers["checkpoint"])]
    facts += [("data", numbers["source"]), ("fingerprint of the data", numbers["fingerprint"])]
    start = numbers["warm_start"]
    facts.append(("warm start", f"{start['source']}: {', '.join(start['names'])}" if start else "none"))
    facts.append(("mesh of training", numbers["mesh"]))
    facts += [(f"trained with {name}", version) for name, version in numbers["versions"].items()]
    page.table((), facts, texts=2)


def _metric_headers() -> list[str]:
    return [_HEADERS.get(name, name) for name in _OF_ROWS]


def _metric_cells(found: _Json) -> list[str]:
    form = {"examples": lambda x: f"{x:,}", "label_rate": share, "prediction": share,
            "deviation": lambda x: number(x, 1)}  # fmt: skip
    return [form.get(name, number)(found[name]) for name in _OF_ROWS]


def _rows(found: _Json) -> str:
    if found["rows"] > found["examples"]:
        return f"{found['examples']:,} of {found['rows']:,} rows"
    return f"{found['rows']:,} rows"


def number(value: float | None, digits: int = 4) -> str:
    """A number as text; a dash without one."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share as text; a dash without one."""
    return percent(float("nan") if value is None else value)


def shortened(text: str, most: int = 60) -> str:
    """A text that leaves room for the rest of its line."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def as_text(value: Any) -> str:
    """A setting as its flag has it."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = ",".join(map(str, _list(value)))
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value == "" else str(value)


def _list(value: Iterable[Any]) -> Sequence[Any]:
    return list(value)


def to_page_json(numbers: _Json) -> str:
    """The numbers as text."""
    return json.dumps(numbers, indent=1)

"""The page of a run, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlrm_jax.cli import run_sections
from dlrm_jax.cli.page import Page
from dlrm_jax.cli.pictures import percent
from dlrm_jax.cli.run_pictures import draw_curves
from dlrm_jax.cli.shown import metric_name, number, shortened
from dlrm_jax.training.config_data import OF_DATA
from dlrm_jax.training.metrics import METRICS

_Json = Mapping[str, Any]

_EVALUATED = ("validation", "prequential")
_PANELS = 5  # of curves, besides that of the loss
_OF_STREAMS = ("position", "time")  # of a window, which aren't metrics
_NOT_DRAWN = (
    "step", "split", "examples", "log_loss", "accuracy", "normalized_entropy", *_OF_STREAMS
)  # fmt: skip
_LONG = 30  # lines that a table shows without a click
_MOST_ITEMS = 6  # of a setting that are shown


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
        run_sections.calibration(page, data)
        run_sections.days(page, data)
        run_sections.feature_importances(page, data)
        run_sections.slices(page, data)
    _tables(page, numbers)
    _settings(page, numbers)
    _origin(page, numbers)
    return page


def _overview(page: Page, numbers: _Json) -> None:
    summary = numbers["summary"]
    page.text(
        f"Model {numbers['config']['model']} of {len(numbers['tables'])} tables, checkpoint of "
        f"step {numbers['step']:,}: {numbers['why_this_step']}."
    )
    if summary is None:
        page.text("There is no summary.json: the run goes on, or was ended before its last step.")
        return
    splits = {x: summary[x] for x in ("train", "validation", "test") if x in summary}
    is_stream = "prequential" in summary
    if summary.get("prequential"):
        splits["last window, predicted before it was trained on"] = summary["prequential"]
    if "test_of_last" in summary and summary.get("best_step") not in (None, summary["steps"]):
        splits[f"test, step {summary['steps']:,}"] = summary["test_of_last"]
    before = {f"{x}, before": found for x, found in summary.get("before", {}).items()}
    lines = {
        ", ".join(filter(None, (split, label))): found
        for split, each in (before | splits).items()
        for label, found in by_label(each).items()
    }
    known = (*METRICS, "examples", *_OF_STREAMS)
    others = [x for each in lines.values() for x in each if x not in known]
    names: list[str] = [*METRICS, *dict.fromkeys(others)]
    page.table(
        ["", *map(metric_name, names), "examples"],
        [
            [line, *(number(each.get(x)) for x in names), f"{each['examples']:,}"]
            for line, each in lines.items()
        ],
    )
    absent = [x for x in ("validation", "test") if x not in splits]
    if absent and not is_stream:
        page.text(f"The data have no examples for {' and '.join(absent)}.")
    speed, best = summary.get("examples_per_second"), summary.get("best_step")
    facts = {
        "steps": f"{summary['steps']:,}" + ", stopped early" * bool(summary.get("stopped_early")),
        "best step": "none" if best is None else f"{best:,}",
        "speed in training": f"{speed:,.0f} examples/s" if speed else "unknown",
        "mesh": f"{summary['mesh']}, {summary['devices']}",
        "batch size": f"{summary['batch_size']:,}",
        "preset": summary.get("preset") or "none",
    }
    if summary.get("teacher_auc"):
        facts["best possible test AUC"] = f"{summary['teacher_auc']:.4f}, that of the teacher"
    page.table((), list(facts.items()), texts=2)


def _curves(page: Page, numbers: _Json) -> None:
    page.heading("Learning curves")
    record = numbers["record"]
    if not record:
        page.text("There is no metrics.jsonl, so there are no curves.")
        return
    evaluated = next((x for x in _EVALUATED if any(y["split"] == x for y in record)), "validation")
    validation = [line for line in record if line["split"] == evaluated]
    best = numbers["config"]["best_metric"]
    panels = [best] * (best != "log_loss" and any(best in line for line in validation))
    for label, found in by_label(validation[-1] if validation else {}).items():
        names = [f"{label}/{x}" if label else x for x in found if x not in _NOT_DRAWN]
        panels += [x for x in names if x != best]
    cuts = [line for line in record if line["split"] == "learning_rate"]
    if cuts:
        listed = ", ".join(f"{line['factor']:g} from step {line['step']:,}" for line in cuts)
        page.text(f"Factor of the learning rate: {listed}.")
    if not validation:
        page.text("There was no validation.")
    label_weights = _label_weights(numbers, validation)
    if len(label_weights) > 1:
        page.text("Losses are the sum over the labels, each times its weight of --label_weights.")
    figure = draw_curves(record, evaluated, numbers["best_step"], panels[:_PANELS], label_weights)
    page.picture(figure, f"lines: training loss and {evaluated} metrics by step")
    if left_out := panels[_PANELS:]:
        page.text(f"In metrics.jsonl alone: {', '.join(left_out)}.")


def _label_weights(numbers: _Json, validation: Sequence[_Json]) -> dict[str, float]:
    """The weight of each label in the loss, by what its metrics begin with."""
    summary = numbers["summary"] or {}
    labels = by_label(validation[-1] if validation else summary.get("train", {}))
    weights = numbers["config"]["label_weights"] or [1.0] * len(labels)
    return {f"{x}/" if x else "": weight for x, weight in zip(labels, weights, strict=False)}


def by_label(metrics: _Json) -> dict[str, dict[str, Any]]:
    """The metrics of each label; those of the main one have an empty name, and come first."""
    labels = [x.removesuffix("/auc") for x in metrics if x.endswith("/auc")]
    found: dict[str, dict[str, Any]] = {label: {} for label in ("", *labels)}
    for name, value in metrics.items():
        label = next((x for x in labels if name.startswith(f"{x}/")), "")
        found[label][name.removeprefix(f"{label}/") if label else name] = value
    return found


def unread_rows(numbers: _Json) -> str:
    """What the values are of rows that the training split never looks up."""
    config, never = numbers["config"], "A row that training never reads keeps"
    if config["table_l2"] and config["table_l2_rows"] == "all":
        text = "table_l2_rows=all shrinks rows that training never reads, too."
    elif numbers["continue_from"]:
        text = (
            f"{never} the values that it had in the run that this one continues; a new one keeps "
            f"its initial values."
        )
    elif numbers["warm_start"]:
        text = (
            f"{never} the values of the warm start if that gives its table, or else its initial "
            f"values."
        )
    else:
        text = f"{never} its initial values."
    if config["unseen_rate"]:
        text += (
            " By unseen_rate, training also reads the row of unseen values, which isn't counted "
            "here."
        )
    return text


def _tables(page: Page, numbers: _Json) -> None:
    page.heading("Tables")
    tables, has_data = numbers["tables"], numbers["data"] is not None
    reads = (
        unread_rows(numbers)
        if has_data
        else "Without the data it isn't known which rows training reads."
    )
    page.text(f"Norms are the Euclidean norms of the rows. {reads}")
    header = ["table", "rows", "dim", "placement", "norm: least", "median", "99 %", "largest",
              "zero rows"]  # fmt: skip
    header += ["never read", "share of rows", "their median norm"] if has_data else []
    rows = []
    for table in tables:
        row = [
            table["table"],
            f"{table['rows']:,}",
            str(table["dim"]),
            table["placement"],
            *map(_norm, table["norms"]),
            f"{table['zero']:,}",
        ]
        if has_data:
            unread = table["unread"]
            row += [f"{unread:,}", percent(unread / table["rows"])]
            row.append(_norm(table["median_unread_norm"]))
        rows.append(row)
    page.table(header, rows)
    hot = [(table["table"], row) for table in tables for row in table["hot"]]
    if not hot:
        return
    page.text("The rows that training reads most, by table:")
    cells = [
        [
            table,
            shortened(row["value"]),
            f"{row['row']:,}",
            f"{row['reads']:,}",
            percent(row["share"]),
            _norm(row["norm"]),
        ]
        for table, row in hot
    ]
    header = ["table", "value", "row", "reads", "share of the table's", "norm"]
    page.table(header, cells, texts=2, folded=f"{len(hot)} rows" if len(hot) > _LONG else "")


def _settings(page: Page, numbers: _Json) -> None:
    page.heading("Settings")
    config, defaults = numbers["config"], numbers["defaults"]
    changed = [x for x in config if config[x] != defaults[x]]
    # What nobody has chosen comes last.
    by_user, by_data = ([x for x in changed if (x in OF_DATA) == y] for y in (False, True))
    if by_user:
        page.text("What differs from the defaults:")
        rows = [[x, _as_text(config[x]), _as_text(defaults[x])] for x in by_user]
        page.table(["setting", "value", "default"], rows, texts=3)
    else:
        page.text("All settings are at their defaults, but for those of the tables.")
    others = [*by_data, *(x for x in config if x not in changed)]
    rows = [[x, _as_text(config[x])] for x in others]
    page.table((), rows, texts=2, folded=f"{len(rows)} settings of the data or at their defaults")


def _origin(page: Page, numbers: _Json) -> None:
    page.heading("Where it comes from")
    start, versions = numbers["warm_start"], numbers["versions"]
    facts = {
        "workdir": numbers["workdir"],
        "checkpoint": numbers["checkpoint"],
        "data": numbers["source"],
        "fingerprint": numbers["fingerprint"],
        "continues": _continued(numbers),
        "warm start": f"{start['source']}: {', '.join(start['names'])}" if start else "none",
        "mesh of training": numbers["mesh"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    page.table((), list(facts.items()), texts=2)


def _continued(numbers: _Json) -> str:
    """The checkpoint that the run continues, and that checkpoint's step."""
    found = numbers.get("continue_from")
    return f"step {found['step']:,} of {found['checkpoint']}" if found else "none"


def _norm(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3g}"


def _as_text(value: Any) -> str:
    """A setting; of a long list its first items."""
    if isinstance(value, list):
        left = len(value) - _MOST_ITEMS
        items = [*map(str, value[:_MOST_ITEMS]), *([f"and {left} more"] if left > 0 else [])]
        return ", ".join(items) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value == "" else str(value)

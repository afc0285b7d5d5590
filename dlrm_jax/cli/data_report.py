"""A report on prepared data, to be read before training: one HTML page with pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.cli.data_pictures import draw_frequencies, draw_labels, draw_unseen
from dlrm_jax.cli.page import Page, check_writable
from dlrm_jax.cli.pictures import bars, percent
from dlrm_jax.cli.split_table import split_rule, split_table
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.day_names import day_names
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.metadata import METADATA, Metadata
from dlrm_jax.data.statistics import Column, Day, Statistics, measure
from dlrm_jax.errors import UserError

_WIDTHS = (16, 64, 128)
_HOTTEST = (0.001, 0.01, 0.1)
_SPLITS = ("train", "validation", "test")


def write_report(directory: Path, output: Path) -> None:
    """Measures the data of a directory and writes one HTML file, which needs nothing else.

    Reads all ids and labels once; memory is 8 bytes for each row of a table. For arrays of
    TorchRec's scripts, what only our metadata tell is left out.

    Raises:
        UserError: the data can't be read or are damaged, or the output is a directory or can't be
            written.
    """
    if not directory.is_dir():
        raise UserError(f"expected a directory of prepared data, there is none named {directory}")
    if output.is_dir():
        raise UserError(f"the report is one HTML file, got the directory {output}; give a name")
    check_writable(output)
    dataset = load_directory(directory)
    metadata = Metadata.read(directory) if (directory / METADATA).exists() else None
    statistics = measure(dataset, metadata)
    names = day_names(metadata, len(statistics.days))

    page = Page(f"Data report: {directory.resolve().name}")
    _overview(page, dataset, metadata, statistics)
    page.heading("Labels by day")
    page.picture(draw_labels(statistics.days, names), "bars: the share of label 1 on each day")
    if statistics.missing is not None:
        _missing(page, statistics.missing)
    page.heading("How often ids occur")
    page.text(
        "Each line is a table, its rows ordered by how often the training split looks them up. "
        "A line that falls steeply is a table whose few hot rows serve most lookups."
    )
    curves = "lines: lookups of each row by its rank, both logarithmic"
    page.picture(draw_frequencies(statistics.tables), curves)
    if unseen := _unseen_by_column(statistics.columns):
        _unseen(page, unseen, names)
    _tables(page, statistics)
    _origin(page, dataset, metadata)
    _days(page, statistics.days, names)
    page.write(output)


def _overview(
    page: Page, dataset: Dataset, metadata: Metadata | None, statistics: Statistics
) -> None:
    examples = sum(day.examples for day in statistics.days)
    positives = sum(day.positives for day in statistics.days)
    rate = f", {percent(positives / examples)} of them with label 1"
    page.text(
        f"{examples:,} examples in {len(statistics.days)} days"
        f"{rate if len(dataset.labels) == 1 else ''}. Categorical columns: "
        f"{len(statistics.columns)}, their tables with "
        f"{sum(table.rows for table in statistics.tables):,} rows. Dense features: "
        f"{dataset.train.dense_features}."
    )
    if len(dataset.labels) > 1:
        _labels(page, dataset.labels, statistics.days)
    if metadata is None:
        page.text(
            f"The directory has no {METADATA}. So this page can't say what the data were made "
            f"from, which values are missing or unseen, or what the columns are called: it "
            f"numbers the categorical ones from C1. Validation and test are taken to be the "
            f"halves of the last day."
        )
        return
    page.text(f"Split by {split_rule(metadata)}:")
    page.table(*split_table(metadata))
    if not _unseen_by_column(statistics.columns):
        page.text(
            "The options that the data were prepared with give unseen values no id of their own, "
            "so how many there are isn't known."
        )


def _labels(page: Page, names: Sequence[str], days: Sequence[Day]) -> None:
    """A table of the labels, the first of which is the main one."""
    rows = []
    for name in names:
        having, positives = (sum(day.labelled[name][i] for day in days) for i in range(2))
        rate = percent(positives / having) if having else "none"
        rows.append([name, f"{having:,}", f"{positives:,}", rate])
    page.table(["label", "examples that have it", "with label 1", "share"], rows)


def _missing(page: Page, missing: Mapping[str, float]) -> None:
    page.heading("Missing values")
    if complete := [name for name, share in missing.items() if not share]:
        page.text(f"No value is missing in {', '.join(complete)}.")
    if some := {name: share for name, share in missing.items() if share}:
        figure = bars(some, "share of the examples without a value")
        page.picture(figure, "bars: missing values by column")


def _unseen_by_column(columns: Sequence[Column]) -> dict[str, tuple[float, ...]]:
    return {column.name: column.unseen for column in columns if column.unseen is not None}


def _unseen(page: Page, unseen: Mapping[str, tuple[float, ...]], names: Sequence[str]) -> None:
    page.heading("Unseen values")
    last = {name: shares[-1] for name, shares in unseen.items() if shares[-1] > 0}
    if any(share > 0 for shares in unseen.values() for share in shares[:-1]):
        page.text(
            "Values outside of the vocabulary share one row: rare ones of the training split, and "
            "those that only validation and test have."
        )
        picture = "lines: the share of unseen values by day, one for each column"
        page.picture(draw_unseen(unseen, names), picture)
    elif last:
        page.text(
            "Values outside of the vocabulary share one row. Only the last day has any: the "
            "vocabularies hold every value of the others."
        )
        figure = bars(last, "share of unseen values in the lookups of the last day")
        page.picture(figure, "bars: unseen values by column")
    else:
        page.text("Every value is in the vocabulary.")


def _tables(page: Page, statistics: Statistics) -> None:
    page.heading("Tables")
    page.text(
        "Memory is that of float32 with row-wise Adagrad: 4 bytes for each number, and 4 more for "
        "each row. Under hottest stands the share of a table's lookups in training that its most "
        "frequent rows serve, one row at the least."
    )
    columns, missing = statistics.tables, statistics.missing
    sharing = statistics.sharing()
    if any(len(each) > 1 for each in sharing):
        page.text(
            "Columns in one line share a vocabulary and its table. The numbers of each follow one "
            "another in their order where they are divided by a slash."
        )
    total = sum(column.rows for column in columns)
    large = _bytes(total, _WIDTHS[-1]) >= 2**30
    unit, size = ("GiB", 2**30) if large else ("MiB", 2**20)
    sizes = [(column.name, column.rows, column.touched) for column in columns]
    sizes.append(("all", total, sum(column.touched for column in columns)))
    # By heading; those without a total are shorter.
    cells = {
        "column": [name for name, _, _ in sizes],
        "rows": [f"{rows:,}" for _, rows, _ in sizes],
        "share of all rows": [percent(column.rows / total) for column in columns],
        "touched in training": [f"{touched:,}" for _, _, touched in sizes],
    }
    for width in _WIDTHS:
        amounts = [_bytes(rows, width) / size for _, rows, _ in sizes]
        cells[f"{unit} at width\u00a0{width}"] = [_amount(amount) for amount in amounts]
    for share in _HOTTEST:
        served = [percent(column.served_by_hottest(share)) for column in columns]
        cells[f"hottest {100 * share:g}%"] = served
    if any(column.bag_length > 1 for column in columns):
        cells["ids per example"] = [f"{column.mean_ids:.2f}" for column in columns]
    if missing is not None:
        cells["missing"] = [" / ".join(percent(missing[x.name]) for x in each) for each in sharing]
    if unseen := _unseen_by_column(statistics.columns):
        last = [" / ".join(percent(unseen[x.name][-1]) for x in each) for each in sharing]
        cells["unseen, last day"] = last
    *rows, totals = itertools.zip_longest(*cells.values(), fillvalue="")
    page.table(list(cells), rows, totals)


def _origin(page: Page, dataset: Dataset, metadata: Metadata | None) -> None:
    page.heading("What the data are")
    facts = [("fingerprint", dataset.fingerprint)]
    if metadata is None:
        facts.append(("source", dataset.source))
    else:
        for file in metadata.made_from["inputs"]:
            facts.append(("file", f"{file['path']}, {file['size']:,} bytes"))
        facts.append(("malformed lines left out", f"{metadata.skipped_lines:,}"))
        facts.append(("examples with label 0 left out", f"{metadata.dropped_negatives:,}"))
        facts += _options("", metadata.made_from["options"])
        facts += [("vocabularies continue", fingerprint) for fingerprint in metadata.grown_from]
        facts += [("made with", " ".join(library)) for library in metadata.versions.items()]
    page.table((), facts, texts=2)


def _options(prefix: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _options(f"{prefix}{name} ", value)
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{name}", "none" if value in (None, "") else str(value)


def _days(page: Page, days: Sequence[Day], names: Sequence[str]) -> None:
    page.heading("Examples by day")
    ones = [[x for _, x in day.labelled.values()] or [day.positives] for day in days]
    counts = [
        [*(day.by_split[name] for name in _SPLITS), *positives]
        for day, positives in zip(days, ones, strict=True)
    ]
    page.table(
        ["day", *_SPLITS, *([f"{x} 1" for x in days[0].labelled] or ["label 1"])],
        [[name, *(f"{count:,}" for count in row)] for name, row in zip(names, counts, strict=True)],
        ["all", *(f"{sum(column):,}" for column in zip(*counts, strict=True))],
    )


def _bytes(rows: int, width: int) -> int:
    return rows * (4 * width + 4)


def _amount(number: float) -> str:
    return "<0.01" if number < 0.01 else f"{number:,.2f}"

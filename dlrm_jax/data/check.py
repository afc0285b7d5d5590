"""Checks that the ids of a data set fit the tables, and its labels and weights the loss."""

from collections.abc import Iterator, Sequence

import numpy as np

from dlrm_jax.data.arrays import ABSENT, Split
from dlrm_jax.data.hstacked import HStacked
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import numbered

_CHUNK_ROWS = 1 << 16


def check_ids(
    split: Split,
    table_rows: Sequence[int],
    bag_lengths: Sequence[int],
    name: str,
    id_ranges: Sequence[Sequence[int]] | None = None,
    columns: Sequence[str] = (),
) -> None:
    """Checks that every id is `ABSENT` or a row of its table.

    On an accelerator an id out of range doesn't fail: it reads or updates another row.

    Args:
        split: examples.
        table_rows: rows of each feature's table.
        bag_lengths: ids per example of each feature.
        name: name of the split for messages.
        id_ranges: smallest and largest id of each feature, see `Dataset`. If they are known and in
            range, the ids aren't read.
        columns: names of the features for messages; without them C1, C2, ….

    Raises:
        UserError: an id is out of range; the message names the first one's row, feature and value.
    """
    if split.ids_per_example != sum(bag_lengths) or len(table_rows) != len(bag_lengths):
        raise UserError(
            f"{name}: {len(table_rows)} tables with bags of {sum(bag_lengths)} ids in all don't "
            f"describe examples with {split.ids_per_example} ids each."
        )
    if id_ranges is not None and all(
        smallest >= ABSENT and largest < rows
        for (smallest, largest), rows in zip(id_ranges, table_rows, strict=True)
    ):
        return
    names = columns or numbered(len(table_rows))
    feature_of_column = np.repeat(np.arange(len(table_rows)), bag_lengths)
    limits = np.asarray(table_rows, np.int64)[feature_of_column]
    for first, chunk in _chunks(split):
        if (chunk.min(axis=0) >= ABSENT).all() and (chunk.max(axis=0) < limits).all():
            continue
        row, column = np.argwhere((chunk < ABSENT) | (chunk >= limits))[0]
        feature = names[int(feature_of_column[column])]
        raise UserError(
            f"{name}, row {first + row} (from 0), categorical feature {feature}: expected "
            f"an id from 0 to {limits[column] - 1}, or {ABSENT} for an absent one, got "
            f"{chunk[row, column]}. Correct the ids, or give this feature a table with more rows."
        )


def check_labels(
    split: Split,
    name: str,
    soft: bool = False,
    labels: Sequence[str] = (),
    chained: bool = False,
) -> None:
    """Checks that every label is 0 or 1, and every sample weight finite and not negative.

    Of several labels an example may lack some, but not all.

    All of them are read: 100 million labels take 0.15 s once they are in the page cache.

    Args:
        split: examples.
        name: name of the split for messages.
        soft: whether labels may be between 0 and 1.
        labels: names of the labels for messages, if there are several.
        chained: whether each of several labels needs those before, see `Model.chained_labels`.

    Raises:
        UserError: a label or a weight is something else; the message names its row. Or all
            weights are 0.
    """
    first, without_weight = 0, bool(len(split))
    broken = _BrokenChain()
    for day in split.days:
        for start in range(0, len(day), _CHUNK_ROWS):
            chunk, row = day[start : start + _CHUNK_ROWS], first + start
            values, weights = chunk.arrays["labels"], chunk.arrays.get("sample_weights")
            good = (values >= 0) & (values <= 1) if soft else (values == 0) | (values == 1)
            expected = "a label of 0 to 1" if soft else "label 0 or 1"
            if values.ndim == 1:
                _check_one(values, good, name, row, expected, labels)
            else:
                _check_several(values, good, name, row, expected, labels)
                if chained:
                    broken.add(values, row)
            without_weight &= weights is not None and not weights.any()
            if weights is not None:
                # NaN isn't, either.
                good = (weights >= 0) & (weights < np.inf)
                _check_all(weights, good, name, row, "a finite sample weight of 0 or more")
        first += len(day)
    broken.check(name, labels)
    if without_weight:
        raise UserError(
            f"{name}: expected an example with a weight above 0, got {first} of weight 0; correct "
            f"the weights, or leave the split empty"
        )


class _BrokenChain:
    """The rows in which a label is above one before it, or missing where one before it is 0.

    A missing label adds no loss, so a model would learn it from rows of one before it alone.
    """

    def __init__(self):
        self._above, self._missing = _Rows(), _Rows()

    def add(self, values: np.ndarray, first: int) -> None:
        """Counts rows of labels, [N, H], of which the first has this number."""
        least = np.fmin.accumulate(values, axis=1)[:, :-1]  # of those that are there
        later = values[:, 1:]
        self._above.add(np.any(later > least, axis=1), values, first)
        self._missing.add(np.any(np.isnan(later) & (least == 0), axis=1), values, first)

    def check(self, name: str, labels: Sequence[str]) -> None:
        """Raises a `UserError` if there are any."""
        if self._above.count:
            found = self._above.values
            names = labels or [f"label {i}" for i in range(len(found))]
            got = ", ".join(f"{x} {y:g}" for x, y in zip(names, found, strict=True))
            raise UserError(
                f"{name}, row {self._above.first} (from 0): expected labels of which each is 0 "
                f"where one before it is, since the model's need each other in the order "
                f"{', '.join(names)}; got {got}, and {self._above.count:,} such rows in all. "
                f"Correct them, give labels in the order in which they happen, or train another "
                f"model"
            )
        if self._missing.count:
            found = self._missing.values
            names = labels or [f"label {i}" for i in range(len(found))]
            before = int(np.argmax(found == 0))
            after = before + int(np.argmax(np.isnan(found[before:])))
            raise UserError(
                f"{name}, row {self._missing.first} (from 0): expected 0 of {names[after]}, as "
                f"{names[before]} is 0 and the model needs each label where one before it is 0; "
                f"got nothing, and {self._missing.count:,} such rows in all. Fill in 0 in the log "
                f"and prepare it again, or train another model, such as mmoe, which learns a label "
                f"from the rows that have it"
            )


class _Rows:
    """Rows with a defect: how many, and number and labels of the first."""

    def __init__(self):
        self.count, self.first, self.values = 0, 0, np.zeros(0)

    def add(self, bad: np.ndarray, values: np.ndarray, first: int) -> None:
        if not self.count and bad.any():
            row = int(np.argmax(bad))
            self.first, self.values = first + row, values[row]
        self.count += int(bad.sum())


def _check_all(
    values: np.ndarray,
    good: np.ndarray,
    name: str,
    first: int,
    expected: str,
    remedy: str = "correct it, or leave this example out",
) -> None:
    if not good.all():
        i = int(np.argmin(good))
        raise UserError(
            f"{name}, row {first + i} (from 0): expected {expected}, got {values[i]:g}; {remedy}"
        )


def _check_one(
    values: np.ndarray,
    good: np.ndarray,
    name: str,
    first: int,
    expected: str,
    labels: Sequence[str],
) -> None:
    if not labels or labels[0] == "label":  # without a name, or with this one
        _check_all(values, good, name, first, expected)
        return
    of_label = f"{expected} of {labels[0]}"
    # The label may be one of several in the log. Preparation for it alone takes no such row.
    remedy = (
        f"a model of {labels[0]} alone has nothing to learn from such rows. To leave them out, "
        f'prepare the log with "label": "{labels[0]}" in the schema and --on_bad_line=skip; or '
        f"train a model of several labels"
    )
    _check_all(values, good | ~np.isnan(values), name, first, of_label, remedy)
    _check_all(values, good, name, first, of_label)


def _check_several(
    values: np.ndarray,
    good: np.ndarray,
    name: str,
    first: int,
    expected: str,
    labels: Sequence[str],
) -> None:
    missing = np.isnan(values)
    for i in range(values.shape[1]):
        of_label = f"{expected}, or none, of {labels[i] if labels else f'label {i} (from 0)'}"
        _check_all(values[:, i], good[:, i] | missing[:, i], name, first, of_label)
    some = f"at least one of the labels {', '.join(labels)}".rstrip()
    _check_all(values[:, 0], np.any(~missing, axis=1), name, first, some)


def _chunks(split: Split) -> Iterator[tuple[int, np.ndarray]]:
    """The ids, chunk by chunk, each with the number of its first row."""
    first = 0
    for day in split.days:
        for start in range(0, len(day), _CHUNK_ROWS):
            ids = day.arrays["ids"][start : start + _CHUNK_ROWS]
            yield first + start, ids.as_stored() if isinstance(ids, HStacked) else ids
        first += len(day)

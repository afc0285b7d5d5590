"""Late labels, on a log whose delays are planted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.stream.late_labels import Held, LateLabels, join, last_rows
from dlrm_jax.training.losses import LOSSES

WAIT = LateLabels("id", "t", "click", seconds=100)
CORRECT = dataclasses.replace(WAIT, way="correct")
N = 3000


def planted() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows, one a second, and events of 3 in 10 of them, after 50 seconds on average."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, N)
    clicked = rng.random(N) < np.where(x, 0.5, 0.1)
    times = 1000.0 + np.arange(N)
    rows = pl.DataFrame({"id": np.arange(N), "t": times, "x": x})
    events = rows.filter(clicked).with_columns(pl.col("t") + rng.exponential(50, clicked.sum()))
    return rows, events.sort("t")


def in_parts(settings: LateLabels, cuts: list[float], early: float = 0) -> pl.DataFrame:
    """What leaves if rows and events come in parts that end at these times."""
    rows, events = planted()
    held, found = Held(), []
    for start, stop in zip([0.0, *cuts], [*cuts, 1e9], strict=True):
        own = rows.filter((pl.col("t") >= start) & (pl.col("t") < stop))
        other = events.filter((pl.col("t") >= start + early) & (pl.col("t") < stop + early))
        leaving, held = join(settings, held, own, other)
        found.append(leaving)
    rest = last_rows(settings, held)
    return pl.concat([*found, *([rest] if len(rest) else [])])


def truth() -> dict[int, int]:
    """The label of each row, by events within the window."""
    rows, events = planted()
    delays = dict(zip(events["id"].to_list(), events["t"].to_list(), strict=True))
    pairs = zip(rows["id"], rows["t"], strict=True)
    return {i: int(delays.get(i, 1e9) <= t + 100) for i, t in pairs}


@pytest.mark.parametrize("early", [0, 30])
def test_rows_wait_for_their_labels(early: float):
    cuts = np.arange(1000, 4300, 37.5).tolist()
    found = in_parts(WAIT, cuts, early)
    assert found["id"].to_list() == list(range(N))  # in the order of time, each once
    assert dict(zip(found["id"], found["click"], strict=True)) == truth()
    assert found.columns == ["id", "t", "x", "click"]


def test_labels_dont_depend_on_the_parts():
    some = in_parts(WAIT, np.arange(1000, 4300, 200.0).tolist())
    assert some.equals(in_parts(WAIT, np.arange(1000, 4300, 37.5).tolist()))


def test_a_row_is_corrected_once():
    found = in_parts(CORRECT, np.arange(1000, 4300, 37.5).tolist())
    negative, positive = (found.filter(pl.col("click") == y)["id"] for y in (0, 1))
    assert negative.to_list() == list(range(N))
    expected = [i for i, label in truth().items() if label]
    assert sorted(positive.to_list()) == expected
    # A correction doesn't come before its row.
    places: dict[int, list[int]] = {}
    for place, i in enumerate(found["id"]):
        places.setdefault(i, []).append(place)
    labels = found["click"].to_list()
    assert all(labels[each[0]] == 0 for each in places.values())


def fitted(loss: Any, x: np.ndarray, y: np.ndarray) -> list[float]:
    """The probabilities of x = 0 and x = 1 that a loss learns."""

    def mean(w: jax.Array) -> jax.Array:
        return jnp.mean(loss(w[x], jnp.asarray(y, jnp.float32)))

    w = jnp.zeros(2)
    step = jax.jit(lambda w: w - 4 * jax.grad(mean)(w))
    for _ in range(300):
        w = step(w)
    return jax.nn.sigmoid(w).tolist()


def test_importance_weights_undo_the_fake_negatives():
    found = in_parts(CORRECT, np.arange(1000, 4300, 37.5).tolist())
    x, y = found["x"].to_numpy(), found["click"].to_numpy()
    rows, labels = planted()[0], np.array([*truth().values()])
    rates = [labels[rows["x"].to_numpy() == k].mean() for k in (0, 1)]
    biased = [rate / (1 + rate) for rate in rates]
    assert fitted(LOSSES["bce"], x, y) == pytest.approx(biased, abs=1e-3)
    assert fitted(LOSSES["fake_negative_weighted"], x, y) == pytest.approx(rates, abs=1e-3)


def test_weights_are_those_of_the_paper():
    logits = jnp.array([-1.0, 0.5, -1.0, 0.5])
    labels = jnp.array([0.0, 0.0, 1.0, 1.0])
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = np.where(labels, -(1 + p) * np.log(p), -(1 - p) * (1 + p) * np.log(1 - p))
    found = LOSSES["fake_negative_weighted"](logits, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def frame(ids: list[Any], times: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"id": ids, "t": times}, strict=False)


@pytest.mark.parametrize(
    ("rows", "events", "message"),
    [
        (frame([1, 1], [1.0, 2.0]), frame([], []), "got id 1 twice"),
        (frame([1, None], [1.0, 2.0]), frame([], []), "rows, row 2: expected an id and a time"),
        (frame([1], [None]), frame([], []), "rows, row 1: expected an id and a time"),
        (frame([1], [1.0]), frame([5], [-1.0]), "events, row 1: expected an id and a time"),
        (frame([1], ["2026-11-25"]), frame([], []), "expected times or numbers in t, got text"),
        (frame([1], [1.0]).drop("t"), frame([], []), "rows have no column 't'"),
        (
            frame([1], [1.0]).with_columns(click=pl.lit(0)),
            frame([], []),
            "rows have a column 'click' already",
        ),
        (frame([1], [1.0]), frame(["a"], [2.0]), "id is Int64 in rows, and String in events"),
        (frame([1, 2, 3], [1.0, 1.0, 1.0]), frame([], []), "3 rows are within the window of 100 s"),
    ],
)
def test_malformed_rows_are_named(rows: pl.DataFrame, events: pl.DataFrame, message: str):
    settings = dataclasses.replace(WAIT, most_rows=2)
    with pytest.raises(UserError, match=message):
        join(settings, Held(), rows, events)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seconds": 1e14}, r"seconds: expected at most 3,162,240,000, .* got 1e\+14; give fewer"),
        ({"seconds": 1e300}, "seconds: expected at most"),
        ({"label": "__time"}, "label: expected a column with a name of its own, got '__time'"),
        ({"label": "__labelled"}, "label: expected a column with a name of its own"),
        ({"id": "__event"}, "id: expected a column with a name of its own"),
        ({"timestamp": "id"}, "expected three columns, got id, id, click"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(WAIT, **changed)


@pytest.mark.parametrize("name", ["__time", "__labelled", "__event"])
def test_columns_with_names_of_the_join_are_refused(name: str):
    rows = frame([1], [1.0]).with_columns(pl.lit(0).alias(name))
    with pytest.raises(UserError, match=f"rows have a column '{name}', a name that join uses"):
        join(WAIT, Held(), rows, frame([], []))


@pytest.mark.parametrize("settings", [WAIT, CORRECT])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_an_id_comes_again_after_its_window_however_rows_are_cut(settings: LateLabels, n: int):
    rows = frame([1, 3, 1, 1, 2, 5], [0.0, 90.0, 100.0, 250.0, 300.0, 700.0])
    events = frame([1, 1, 2, 3], [30.0, 330.0, 301.0, 191.0])  # the last one is too late
    held, found = Held(), []
    for start in range(0, 6, n):
        came = rows[start : start + n]
        first, last = came["t"][0], came["t"][-1]
        own = events.filter(pl.col("t").is_between(first, last + 100))  # some come again
        leaving, held = join(settings, held, came, own)
        found.append(leaving)
    positive = pl.concat(found).filter(pl.col("click") == 1).select("id", "t").sort("t").rows()
    assert positive == [(1, 0.0), (1, 250.0), (2, 300.0)]


def test_an_id_that_comes_again_within_the_window_is_refused():
    with pytest.raises(UserError, match="got id 1 twice"):
        join(WAIT, Held(), frame([1, 2, 1], [0.0, 500.0, 99.0]), frame([], []))


def test_events_that_find_no_row_are_counted():
    late = frame([1, 2, 77, 3], [20.0, 310.0, 40.0, 205.0])  # of a row that left, later, of none
    _, held = join(WAIT, Held(), frame([1], [0.0]), frame([], []))
    leaving, held = join(WAIT, held, frame([2, 3], [200.0, 201.0]), frame([], []))
    assert (leaving.rows(), held.missed) == ([(1, 0.0, 0)], 0)
    _, held = join(WAIT, held, frame([4], [202.0]), late)
    assert held.missed == 2
    leaving, held = join(WAIT, held, frame([5], [500.0]), frame([], []))
    assert held.missed == 3
    assert leaving["click"].to_list() == [0, 1, 0]


def test_a_correction_leaves_behind_its_row():
    rows, events = frame([1, 2, 3], [10.0, 20.0, 30.0]), frame([1, 2], [29.0, 5.0])
    leaving, held = join(CORRECT, Held(), rows, events)
    found = leaving.select("id", "click").rows()
    assert found == [(1, 0), (2, 0), (2, 1), (1, 1), (3, 0)]
    later = frame([3, 4], [41.0, 45.0])
    leaving, held = join(CORRECT, held, frame([4], [40.0]), later)
    assert leaving.select("id", "click").rows() == [(4, 0)]
    leaving, held = join(CORRECT, held, frame([5], [43.0]), later.clear())
    assert leaving.select("id", "click").rows() == [(3, 1), (5, 0)]
    leaving, held = join(CORRECT, held, frame([], []), later.clear())
    assert leaving.select("id", "click").rows() == [(4, 1)]


def test_a_time_that_was_ahead_in_an_earlier_version_ends_no_window():
    held = Held(now=10**15)
    leaving, held = join(WAIT, held, frame([1, 2], [0.0, 150.0]), frame([], []), limit=10**14)
    assert leaving["id"].to_list() == [1]
    assert held.now == 150_000_000


def test_an_event_of_a_later_row_with_the_id_waits_for_it():
    _, held = join(WAIT, Held(), frame([1], [0.0]), frame([1], [155.0]))
    leaving, held = join(WAIT, held, frame([1], [150.0]), frame([], []))
    assert leaving.rows() == [(1, 0.0, 0)]
    assert last_rows(WAIT, held).rows() == [(1, 150.0, 1)]


@pytest.mark.parametrize("limit", [None, 5_000_000_000])
def test_rows_that_are_ahead_end_no_window(limit: int | None):
    ids, times = [*range(150), 999], [*map(float, range(150)), 1e6]
    if limit:  # more than 1 in 100 are behind the limit
        ids, times = [*ids, *range(1000, 1100)], [*times, *map(float, range(6000, 6100))]
    leaving, held = join(WAIT, Held(), frame(ids, times), frame([], []), limit)
    assert leaving["id"].to_list() == list(range(50))
    assert held.now == 149_000_000
    leaving, held = join(WAIT, held, frame([2000], [160.0]), frame([149], [170.0]), limit)
    assert leaving["id"].to_list() == list(range(50, 61))
    labels = dict(last_rows(WAIT, held).select("id", "click").rows())
    assert (labels[149], labels[999]) == (1, 0)


FIRST = pl.DataFrame({"id": [1, 2], "t": [0.0, 100.0], "x": [7, 8]})


@pytest.mark.parametrize("settings", [WAIT, CORRECT])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, FIRST.select("x", "t", "id")),
        ({}, FIRST.cast({"x": pl.Int32, "id": pl.UInt8})),
        ({}, FIRST.cast({"t": pl.Int64, "x": pl.Float64})),
        ({}, FIRST.with_columns(z=1)),
        ({"x": pl.Int32}, FIRST),
        ({"t": pl.Datetime("ns")}, FIRST.cast({"t": pl.Datetime("us")})),
        (
            {"t": pl.Datetime("ms")},
            FIRST.cast({"t": pl.Datetime("ms")}).cast({"t": pl.Datetime("ns")}),
        ),
        (None, FIRST.with_columns(x=pl.concat_list(pl.col("x").cast(pl.Int16)))),
        ({"x": pl.String}, FIRST.cast({"x": pl.String}).cast({"x": pl.Categorical})),
        ({}, FIRST.with_columns(x=None)),
        ({"id": pl.Int32}, FIRST.clear()),
    ],
)
def test_columns_may_come_in_another_order_and_in_types_that_have_their_values(
    settings: LateLabels, before: dict[Any, Any] | None, after: pl.DataFrame
):
    lists = FIRST.with_columns(x=pl.concat_list("x"))
    first = lists if before is None else FIRST.cast(before)
    events = FIRST[1:].cast({"id": pl.Int16, "t": after.schema["t"]})
    earlier, held = join(settings, Held(), first, events.select("id", "t").clear())
    after = after.with_columns(id=pl.col("id") + 2)
    given = events.select(pl.col("id") + 2, "t")
    leaving, held = join(settings, held, after, given)
    assert leaving.columns == earlier.columns
    found = [earlier, leaving, *([last_rows(WAIT, held)] if settings is WAIT else [])]
    labels = dict(pl.concat(found).select("id", "click").rows())
    assert labels == ({1: 0, 2: 0, 3: 0, 4: 1} if len(after) else {1: 0, 2: 0})
    assert leaving.schema == earlier.schema


def test_a_type_that_was_unknown_becomes_known():
    empty = pl.DataFrame({"id": [], "t": [], "x": []})
    _, held = join(WAIT, Held(), empty, empty)
    leaving, held = join(WAIT, held, FIRST, FIRST[1:])
    assert leaving.rows() == [(1, 0.0, 7, 0)]
    assert last_rows(WAIT, held).rows() == [(2, 100.0, 8, 1)]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, FIRST.drop("x"), "rows have no column 'x', and those before had one"),
        ({}, FIRST.cast({"x": pl.String}), "column 'x' is String, and was Int64 before"),
        ({}, FIRST.with_columns(pl.col("x") + 0.5), "column 'x' is Float64, and was Int64"),
        ({"x": pl.Int8}, FIRST.with_columns(pl.col("x") + 500), "'x' is Int64, and was Int8"),
        (
            {"t": pl.Datetime("ms")},
            FIRST.with_columns(t=pl.lit(1500).cast(pl.Datetime("us"))),
            "column 't' is Datetime.*'us'.*, and was Datetime.*'ms'.* write it in one type",
        ),
    ],
)
def test_columns_that_cant_go_on_are_named(
    before: dict[Any, Any], after: pl.DataFrame, message: str
):
    events = FIRST.clear()
    _, held = join(WAIT, Held(), FIRST.cast(before), events)
    with pytest.raises(UserError, match=message):
        join(WAIT, held, after.with_columns(pl.col("id") + 2), events)

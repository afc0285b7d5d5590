"""Days by date, and files held out."""

import dataclasses
import datetime

import polars as pl
import pytest

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

SCHEMA = Schema("y", ("a",), timestamp="when")
START = datetime.datetime(2026, 2, 27, 22, 30)


def times(hours):
    return [START + datetime.timedelta(hours=hour) for hour in hours]


def write(path, when):
    count = len(when)
    frame = pl.DataFrame({"y": [0, 1] * (count // 2) + [1] * (count % 2), "a": range(count)})
    frame.with_columns(pl.Series("when", when)).write_parquet(path)
    return path


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x.isoformat(),
        lambda x: x.replace(tzinfo=datetime.UTC).timestamp(),
        lambda x: int(x.replace(tzinfo=datetime.UTC).timestamp()),
        lambda x: x.replace(tzinfo=datetime.UTC).isoformat(),
    ],
)
def test_a_day_is_a_date(tmp_path, form):
    path = write(tmp_path / "log.parquet", [form(time) for time in times(range(48))])
    metadata = preprocess([path], tmp_path / "out", Options(SCHEMA, split="days"))
    assert metadata.days == [2, 24, 22]  # the first begins at 22:30
    assert metadata.splits == {
        "train": [[0, 0, 2], [1, 0, 24]],
        "test": [[2, 0, 11]],
        "validation": [[2, 11, 22]],
    }


def test_a_date_goes_on_in_another_file(tmp_path):
    paths = [
        write(tmp_path / "0.parquet", times(range(20))),
        write(tmp_path / "1.parquet", times(range(20, 30))),
    ]
    assert preprocess(paths, tmp_path / "out", Options(SCHEMA)).days == [2, 18, 6, 4]


def test_a_date_that_several_files_share_is_one_day(tmp_path):
    paths = [write(tmp_path / f"{i}.parquet", times(range(i * 7, i * 7 + 7))) for i in range(3)]
    metadata = preprocess(paths, tmp_path / "out", Options(SCHEMA, split="days"))
    assert metadata.days == [2, 5, 7, 7]  # two hours of the first date, nineteen of the second
    assert metadata.splits == {
        "train": [[0, 0, 2]],
        "test": [[1, 0, 5], [2, 0, 5]],
        "validation": [[2, 5, 7], [3, 0, 7]],
    }
    options = Options(SCHEMA, drop_negatives=0.5, split="days")
    with pytest.raises(UserError, match="the last file isn't just the last day"):
        preprocess(paths, tmp_path / "other", options)


def test_held_out_files_may_have_several_dates(tmp_path):
    path = write(tmp_path / "log.parquet", times(range(5)))
    held_out = [
        write(tmp_path / "validation.parquet", times(range(5, 30))),
        write(tmp_path / "test.parquet", times(range(30, 31))),
    ]
    preprocess([path], tmp_path / "out", Options(SCHEMA), held_out)
    dataset = load_directory(tmp_path / "out")
    assert [len(split) for split in dataset.splits.values()] == [5, 25, 1]
    preprocess([path], tmp_path / "for test", Options(SCHEMA), held_out[:1])
    dataset = load_directory(tmp_path / "for test")
    assert [len(split) for split in dataset.splits.values()] == [5, 0, 25]
    with pytest.raises(UserError, match="up to two for validation and test, got 1 and 3"):
        preprocess([path], tmp_path / "other", Options(SCHEMA), [*held_out, path])


@pytest.mark.parametrize("rows", [2, 1 << 18])
def test_times_that_go_back(tmp_path, rows, monkeypatch):
    monkeypatch.setattr("dlrm_jax.data.preprocessing.sources.CHUNK_ROWS", rows)
    path = write(tmp_path / "log.parquet", times([0, 1, 2, 30, 29, 31, 60]))
    with pytest.raises(
        UserError, match=r"log.parquet, row 5 .* 2026-03-01 03:30:00 is before .* 04"
    ):
        preprocess([path], tmp_path / "out", Options(SCHEMA))


@pytest.mark.parametrize(
    ("when", "row"),
    [
        (["2026-01-01", "2026-01-02", "soon", "2026-01-03"], "row 3, .* got 'soon'"),
        (["now", "then"], "row 1, .* got 'now'"),
        (["03/01/2024", "03/02/2024"], "row 1, .* got '03/01/2024'"),  # who knows the month
        ([1_700_000_000_000, 1_700_000_000_001], "row 1, .* got 1700000000000"),  # milliseconds
        ([1.7e9, float("nan")], "row 2, .* got nan"),
    ],
)
def test_a_time_that_is_none(tmp_path, when, row):
    path = write(tmp_path / "log.parquet", when)
    with pytest.raises(UserError, match=row):
        preprocess([path], tmp_path / "out", Options(SCHEMA))


ONE_OTHER_TIME = pytest.mark.parametrize(
    ("form", "other"),
    [
        *((lambda x: x.isoformat(), other) for other in ("0", "inf", "NaN", "20240101", "soon")),
        (lambda x: str(x.replace(tzinfo=datetime.UTC).timestamp()), "2026-02-28"),
    ],
)


@ONE_OTHER_TIME
def test_a_time_of_another_kind_is_a_bad_row(tmp_path, form, other, monkeypatch):
    """A number among texts, or a text among numbers; the rows beside it are good."""
    monkeypatch.setattr("dlrm_jax.data.preprocessing.sources.CHUNK_ROWS", 10)
    when = [form(time) for time in times(range(48))]
    path = write(tmp_path / "log.parquet", [*when[:33], other, *when[33:]])
    with pytest.raises(UserError, match=f"row 34, column when: .*, got '{other}'"):
        preprocess([path], tmp_path / "out", Options(SCHEMA))
    metadata = preprocess([path], tmp_path / "out", Options(SCHEMA, on_bad_line="skip"))
    assert (metadata.skipped_lines, metadata.days) == (1, [2, 24, 22])


def test_the_first_times_that_there_are_decide_on_their_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("dlrm_jax.data.preprocessing.sources.CHUNK_ROWS", 10)
    when = [time.isoformat() for time in times(range(48))]
    path = write(tmp_path / "log.parquet", [*[None] * 10, *when[:30], *"0123456789", *when[30:]])
    metadata = preprocess([path], tmp_path / "out", Options(SCHEMA, on_bad_line="skip"))
    assert (metadata.skipped_lines, sum(metadata.days)) == (20, 48)


def test_one_date_is_not_enough(tmp_path):
    path = write(tmp_path / "log.parquet", times([2, 3, 4, 5]))
    with pytest.raises(UserError, match=r"got 4 rows, all of 2026-02-28; give --split=time:0.1"):
        preprocess([path], tmp_path / "out", Options(SCHEMA, split="days"))


@pytest.mark.parametrize("form", [int, float, str])
def test_negative_seconds_are_refused(tmp_path, form):
    path = write(tmp_path / "log.parquet", [form(i - 30) for i in range(20)])
    message = r"row 1, column when: expected .*seconds since 1970, .* got '?-30(\.0)?'?$"
    with pytest.raises(UserError, match=message):
        preprocess([path], tmp_path / "out", Options(SCHEMA))


@pytest.mark.parametrize(
    ("form", "other"),
    [
        *((form, []) for form in (int, float, str)),
        *((int, [other] * 30) for other in (None, 0, 7)),
        *((float, [other] * 30) for other in (None, float("nan"))),
        *((str, [other] * 30) for other in (None, "NaN")),
    ],
)
def test_dates_written_as_numbers_are_refused(tmp_path, form, other, monkeypatch):
    """They would be seconds of 1970, and so all one day. Most rows may be without a time."""
    monkeypatch.setattr("dlrm_jax.data.preprocessing.sources.CHUNK_ROWS", 40)
    when = [form(date) for date in range(20211201, 20211221)]
    path = write(tmp_path / "log.parquet", [*when[:9], *other, *when[9:]])
    message = (
        r"log.parquet, row 1, column when: expected .*, got '?20211201(\.0)?'?: .* Write "
        r"dates such as 2021-12-01; .* write times such as 1970-08-22 22:13:21$"
    )
    for on_bad_line in ("stop", "skip"):
        with pytest.raises(UserError, match=message):
            preprocess([path], tmp_path / "out", Options(SCHEMA, on_bad_line=on_bad_line))


def test_a_chunk_of_one_date_is_refused(tmp_path):
    """A date may have more rows than a chunk."""
    path = write(tmp_path / "log.parquet", [0, *[20211201] * 20])
    with pytest.raises(UserError, match=r"row 2, column when: .* such as 2021-12-01;"):
        preprocess([path], tmp_path / "out", Options(SCHEMA))


@pytest.mark.parametrize(
    "when",
    [
        [f"20211201{hour:02}" for hour in range(24)],
        [f"{day:02}122021" for day in range(1, 32)],
        [f"{month:02}012021" for month in range(1, 13)],
        [f"2112{day:02}" for day in range(1, 32)],
    ],
)
def test_other_forms_of_dates_as_numbers(tmp_path, when):
    path = write(tmp_path / "log.parquet", [int(x) for x in when])
    with pytest.raises(UserError, match=r"row 1, column when: .*dates such as 2021-(12|01)-01;"):
        preprocess([path], tmp_path / "out", Options(SCHEMA))


@pytest.mark.parametrize(
    "when",
    [
        [i * 7200 for i in range(48)],
        [2021111 + i * 7200 for i in range(48)],  # seven digits
        [20200101.5 + i for i in range(28)] + [20300000.0] * 2,
        [20200101 + i for i in range(80)] + [20300000] * 2,  # of 100 numbers, 31 are like dates
        [*[i * 2700 for i in range(64)], *[20200101 + i for i in range(28)]],  # not the first
    ],
)
def test_seconds_since_a_log_began(tmp_path, monkeypatch, when):
    monkeypatch.setattr("dlrm_jax.data.preprocessing.sources.CHUNK_ROWS", 64)
    path = write(tmp_path / "log.parquet", when)
    metadata = preprocess([path], tmp_path / "out", Options(SCHEMA, on_bad_line="skip"))
    assert (metadata.skipped_lines, sum(metadata.days)) == (0, len(when))


def test_the_first_and_the_last_date_are_noted(tmp_path):
    path = write(tmp_path / "log.parquet", times(range(48)))
    metadata = preprocess([path], tmp_path / "out", Options(SCHEMA))
    assert metadata.dates == ["2026-02-27", "2026-03-01"]
    undated = dataclasses.replace(SCHEMA, timestamp=None)
    assert preprocess([path], tmp_path / "undated", Options(undated)).dates == []

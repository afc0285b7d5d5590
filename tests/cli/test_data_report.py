"""The page that describes prepared data, as a reader's program sees it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from page_reader import read

from dlrm_jax.cli import data_report
from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.data_report import write_report
from dlrm_jax.cli.page import Page
from dlrm_jax.data.preprocessing.pipeline import Options, preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

NASTY = ("<script>alert(1)</script>", "$x^{$ & 国家", "_no item", "n" * 200)
LOG = "<script>, ä &.parquet"


def rows_of(page):
    """Rows of the tables, as the page gives them."""
    start = [row[0] for row in page.rows].index("column")
    return [row[1] for row in page.rows[start + 1 :][: len(NASTY)]]


def prepare(directory: Path, min_count: int = 1) -> Path:
    rng = np.random.default_rng(0)
    n = 700
    fresh = np.arange(n) // 100
    bags = [[int(x) for x in rng.integers(0, 20 + day, rng.integers(1, 4))] for day in fresh]
    columns = [
        bags,
        [("a", "b", None)[x] for x in rng.integers(0, 3, n)],
        [[]] * n,
        rng.integers(0, 9, n),
    ]
    log = {"label": rng.integers(0, 2, n), "price": range(n)}
    log |= dict(zip(NASTY, columns, strict=True))
    types = {"_no item": pl.List(pl.String)}
    pl.DataFrame(log, schema_overrides=types).write_parquet(directory / LOG)
    schema = Schema("label", NASTY, ("price",), {NASTY[0]: 3, "_no item": 2})
    preprocess([directory / LOG], directory / "<script>data", Options(schema, min_count))
    return directory / "<script>data"


@pytest.mark.parametrize("min_count", [1, 20])
def test_a_log_becomes_a_page_with_pictures(tmp_path, min_count):
    write_report(prepare(tmp_path, min_count), tmp_path / "report.html")
    page, pictures = read(tmp_path / "report.html")
    assert page.tags.count("img") == len(pictures) == 4
    assert "script" not in page.tags
    labels, missing, frequencies, unseen = pictures
    assert "share of label 1, %" in labels
    assert NASTY[1] in missing
    assert f"No value is missing in price, {NASTY[0]}, {NASTY[2]}, {NASTY[3]}." in page.text
    for name, rows in zip(NASTY, rows_of(page), strict=True):
        assert f"{name if len(name) < 28 else 'n' * 27 + '…'}, {rows} rows" in frequencies
    assert any(text.startswith(NASTY[0]) for text in unseen)
    by_name = {row[0]: row for row in page.rows}
    assert by_name.keys() >= {*NASTY, "column", "fingerprint", "min_count", "schema categorical"}
    assert by_name["min_count"][1] == str(min_count)
    assert by_name["file"][1].startswith(str(tmp_path / LOG))
    assert "Data report: <script>data" in page.text
    assert by_name["0"] == ["0", "100", "0", "0", by_name["0"][-1]]
    assert by_name["6"][1:4] == ["0", "50", "50"]


def test_the_table_of_tables_holds_what_it_says(tmp_path):
    write_report(prepare(tmp_path), tmp_path / "report.html")
    page, _ = read(tmp_path / "report.html")
    start = [row[0] for row in page.rows].index("column")
    header, total = page.rows[start], page.rows[start + 1 + len(NASTY)]
    cells = [dict(zip(header, row, strict=True)) for row in page.rows[start + 1 :][: len(NASTY)]]
    rows = [int(number) for number in rows_of(page)]
    # 25 items, two letters, nothing, 9 numbers; two more for unseen and missing values.
    assert rows == [27, 4, 2, 11]
    assert dict(zip(header, total, strict=True))["rows"] == str(sum(rows))
    assert cells[0]["missing"] == "0%"
    assert cells[0]["share of all rows"] == f"{27 / sum(rows):.1%}"
    assert cells[2]["missing"] == "0%"
    assert cells[2]["hottest 10%"] == cells[2]["unseen, last day"] == "\u2013"
    assert cells[0]["MiB at width\u00a0128"] == f"{27 * 129 * 4 / 2**20:.2f}"
    assert cells[3]["MiB at width\u00a016"] == "<0.01"
    assert cells[3]["ids per example"] == "1.00"


def test_days_have_their_dates(tmp_path: Path):
    times = [f"2026-0{1 + i // 4}-{(31, 1)[i // 4]:02}" for i in range(8)]
    log = {"y": [0, 1] * 4, "a": [1, 1, 2, 2, 1, 3, 4, 2], "time": times}
    pl.DataFrame(log).write_csv(tmp_path / "log.csv")
    options = Options(Schema("y", ("a",), timestamp="time"), split="time:1d,0d")
    preprocess([tmp_path / "log.csv"], tmp_path / "data", options)
    write_report(tmp_path / "data", tmp_path / "report.html")
    page, pictures = read(tmp_path / "report.html")
    dates = ["2026-01-31", "2026-02-01"]
    assert [row[0] for row in page.rows[-3:]] == [*dates, "all"]
    assert set(dates) <= {text.partition("\n")[0] for text in pictures[0]}


def torchrec(directory: Path, days: int = 2) -> Path:
    directory.mkdir()
    for day in range(days):
        np.save(directory / f"day_{day}_dense.npy", np.zeros((4, 13), np.float32))
        np.save(directory / f"day_{day}_sparse.npy", np.arange(104, dtype=np.int32).reshape(4, 26))
        np.save(directory / f"day_{day}_labels.npy", np.array([[0], [1], [0], [1]], np.int32))
    return directory


@pytest.mark.parametrize("days", [2, 40])
def test_arrays_of_others_have_a_page_that_says_what_is_unknown(tmp_path, days):
    write_report(torchrec(tmp_path / "arrays", days), tmp_path / "new" / "report.html")
    page, pictures = read(tmp_path / "new" / "report.html")
    assert len(pictures) == 2
    assert "no metadata.json" in page.text
    assert "Missing values" not in page.text
    assert {f"C{i}" for i in range(1, 27)} <= {row[0] for row in page.rows}
    assert "21 other tables" in pictures[1]


def test_memory_is_that_of_numbers_and_optimizer_state(tmp_path):
    directory = torchrec(tmp_path / "arrays")
    ids = np.load(directory / "day_1_sparse.npy")
    ids[0, 0] = 4_999_999
    np.save(directory / "day_1_sparse.npy", ids)
    write_report(directory, tmp_path / "report.html")
    page, _ = read(tmp_path / "report.html")
    header = next(row for row in page.rows if row[0] == "column")
    row = dict(zip(header, next(row for row in page.rows if row[0] == "C1"), strict=True))
    for width in (16, 64, 128):
        expected = f"{5_000_000 * (4 * width + 4) / 2**30:.2f}"
        assert row[f"GiB at width\u00a0{width}"] == expected


def test_the_same_data_give_the_same_page(tmp_path):
    directory = torchrec(tmp_path / "arrays")
    for name in ("a.html", "b.html"):
        write_report(directory, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_what_cannot_be_reported_leaves_no_file_and_no_damage(tmp_path):
    directory, output = torchrec(tmp_path / "arrays"), tmp_path / "report.html"
    output.write_text("before")
    ids = np.zeros((4, 26), np.int32)
    ids[2, 3] = -2
    np.save(directory / "day_1_sparse.npy", ids)
    with pytest.raises(UserError, match="feature C4:"):
        write_report(directory, output)
    with pytest.raises(UserError, match="there is none named"):
        write_report(tmp_path / "nothing", output)
    with pytest.raises(UserError, match="one HTML file"):
        write_report(directory, tmp_path)
    assert output.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"arrays", "report.html"}


def test_all_that_a_page_is_given_is_text(tmp_path):
    page = Page("<b>title</b>")
    page.heading("<b>heading</b>")
    page.text("<b>text</b>")
    page.text("\ud800")
    page.table(["<b>head</b>", "n"], [["<b>cell</b>", "1"]], ["<b>total</b>", "1"])
    page.write(tmp_path / "page.html")
    reader, _ = read(tmp_path / "page.html")
    assert "b" not in reader.tags
    assert "\\ud800" in reader.text
    assert reader.rows == [["<b>head</b>", "n"], ["<b>cell</b>", "1"], ["<b>total</b>", "1"]]
    for word in ("title", "heading", "text"):
        assert f"<b>{word}</b>" in reader.text
    assert dict(reader.attributes)["class"] == "text"


@pytest.mark.parametrize("program", ["dlrm_jax.cli.report"], indirect=True)
def test_a_page_of_a_user_stays(program, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html>\nmine")
    cli_flags.parse(["report", f"--data={tmp_path}"])
    with pytest.raises(UserError, match=r"report\.html exists, and this program didn't make it"):
        program.main()
    Page("of an earlier report").write(page)
    with pytest.raises(UserError, match="expected a metadata"):  # the data, which come next
        program.main()


@pytest.mark.parametrize("program", ["dlrm_jax.cli.report"], indirect=True)
def test_data_of_another_user_have_their_page_elsewhere(program, tmp_path, read_only, monkeypatch):
    directory, output = torchrec(tmp_path / "arrays"), tmp_path / "new" / "here"
    read_only(directory)
    cli_flags.parse(["report", f"--data={directory}"])
    with monkeypatch.context() as patch:
        patch.setattr(data_report, "measure", None)  # it isn't called
        with pytest.raises(UserError, match=r"cannot write .*html: Perm.*; give .* as --output"):
            program.main()
    cli_flags.parse(["report", f"--data={directory}", f"--output={output}"])
    program.main()
    assert [path.name for path in output.iterdir()] == ["report.html"]

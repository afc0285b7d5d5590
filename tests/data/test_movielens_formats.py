"""Every format gives the same tables, and says what is wrong where."""

from __future__ import annotations

import codecs

import polars as pl
import pytest
from movielens_files import (
    ITEMS,
    RATINGS,
    USERS,
    YEARS,
    write_1m,
    write_100k,
    write_csv,
    write_recbole,
)

from dlrm_jax.data.movielens.formats import read_tables
from dlrm_jax.errors import UserError

WRITERS = {"100k": write_100k, "1m": write_1m, "csv": write_csv, "recbole": write_recbole}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_every_format_says_the_same(tmp_path, write):
    write(tmp_path)
    tables = read_tables(tmp_path)
    assert tables.ratings.columns == ["user", "item", "rating", "time"]
    # Sorted by time; what has the same time stays in the order of the file.
    assert tables.ratings.rows() == sorted(RATINGS, key=lambda row: row[3])
    items = tables.items.select("item", "year", pl.col("genres").fill_null([]))
    assert items.rows() == [(item, YEARS[item], genres) for item, (_, genres) in ITEMS.items()]
    if write is write_csv:
        assert tables.users.is_empty()
        return
    users = tables.users.select("user", "age", "gender", "occupation", "zip").rows()
    assert users == [(user, *(value or None for value in told)) for user, told in USERS.items()]


def test_files_beside_the_ratings_may_be_missing(tmp_path):
    write_1m(tmp_path)
    (tmp_path / "users.dat").unlink()  # 10M has none
    tables = read_tables(tmp_path)
    assert tables.users.columns == ["user"]
    assert [path.name for path in tables.files] == ["ratings.dat", "movies.dat"]


def test_genres_of_recbole_have_one_of_two_names(tmp_path):
    write_recbole(tmp_path)
    before = read_tables(tmp_path).items
    text = (tmp_path / "small.item").read_text(encoding="utf-8")
    (tmp_path / "small.item").write_text(text.replace("class:", "genre:"), encoding="utf-8")
    assert read_tables(tmp_path).items.equals(before)


@pytest.mark.parametrize(
    ("write", "name", "line", "content", "message"),
    [
        (write_100k, "u.data", 3, "1\t2\t3", r"u.data, line 3: expected 4 fields.*found 3"),
        (write_100k, "u.data", 12, "1\t2\t3\t4\t5", r"line 12: expected 4 fields.*found 5"),
        (write_100k, "u.data", 2, "", r"u.data, line 2: .*found a blank line"),
        (write_100k, "u.data", 2, "1\tx\t3\t4", r"line 2, item: expected a whole.*found 'x'"),
        (write_100k, "u.data", 2, "-1\t2\t3\t4", r"line 2, user: expected a whole.*'-1'"),
        (write_100k, "u.data", 2, "1\t2\t50\t4", r"line 2, rating: .*0.5 to 5, found '50'"),
        (write_100k, "u.data", 2, "1\t2\tnan\t4", r"line 2, rating: .*found 'nan'"),
        (write_100k, "u.data", 2, "1\t2\t3\t", r"line 2, time: .*found ''"),
        (write_100k, "u.item", 1, "1|A|B", r"u.item, line 1: expected 24 fields.*found 3"),
        (write_100k, "u.user", 2, "1|24|M|artist|1", r"u.user: user 1 comes twice"),
        (write_1m, "ratings.dat", 5, "1::2::3", r"ratings.dat, line 5: .*'::', found 3"),
        (write_1m, "users.dat", 1, "1::M::old::a::1", r"users.dat, line 1, age: .*'old'"),
        (write_csv, "ratings.csv", 1, "a,b,c,d", r"ratings.csv, line 1: expected a header"),
        (write_csv, "ratings.csv", 4, "1,2,3,x", r"ratings.csv, line 4, timestamp: .*'x'"),
        (write_csv, "movies.csv", 3, "1,A", r"movies.csv, line 3: expected 3 fields.*found 2"),
        (write_csv, "movies.csv", 3, "a,A,B", r"movies.csv, line 3, movieId: .*'a'"),
        (write_recbole, "small.inter", 1, "user_id:token\tx", r"line 1: expected a header"),
        (write_recbole, "small.item", 2, "1\t2", r"small.item, line 2: .*found 2"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, write, name, line, content, message):
    write(tmp_path)
    lines = (tmp_path / name).read_bytes().split(b"\n")
    lines[line - 1] = content.encode()
    (tmp_path / name).write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=message):
        read_tables(tmp_path)


@pytest.mark.parametrize(("write", "name"), [(write_100k, "u.data"), (write_csv, "movies.csv")])
def test_an_empty_file_is_an_error(tmp_path, write, name):
    write(tmp_path)
    (tmp_path / name).write_text("\n")
    with pytest.raises(UserError, match=f"{name}: expected a record a line, the file is empty"):
        read_tables(tmp_path)


def test_a_header_alone_is_an_error(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(UserError, match="expected lines below the header"):
        read_tables(tmp_path)


def test_another_encoding_is_an_error(tmp_path):
    write_recbole(tmp_path)
    (tmp_path / "small.user").write_bytes(
        b"user_id:token\tage\tgender\toccupation\tzip_code\n1\t20\tF\tch\xe9f\t1\n"
    )
    with pytest.raises(UserError, match=r"small\.user, line 2: expected UTF-8, found the byte e9"):
        read_tables(tmp_path)


def test_a_directory_must_hold_one_data_set(tmp_path):
    with pytest.raises(UserError, match="expected a directory of MovieLens files, got none there"):
        read_tables(tmp_path / "missing")
    with pytest.raises(UserError, match="found an empty directory"):
        read_tables(tmp_path)
    (tmp_path / "ml-100k.zip").touch()
    with pytest.raises(UserError, match=r"u\.data, ratings\.dat.*found ml-100k\.zip"):
        read_tables(tmp_path)
    write_100k(tmp_path)
    write_csv(tmp_path)
    with pytest.raises(UserError, match="ratings of one MovieLens data set"):
        read_tables(tmp_path)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, write):
    write(tmp_path)
    before = read_tables(tmp_path)
    for path in before.files:
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    after = read_tables(tmp_path)
    for name in ("ratings", "users", "items"):
        assert getattr(after, name).equals(getattr(before, name))


def test_a_file_is_no_directory_of_them(tmp_path):
    (tmp_path / "u.data").touch()
    with pytest.raises(UserError, match="expected a directory of MovieLens files, got a file"):
        read_tables(tmp_path / "u.data")

"""Detects the format of a MovieLens directory and reads its tables in one form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from dlrm_jax.data.movielens.fields import (
    AGE,
    FLAG,
    ID,
    RATING,
    TEXT,
    TIME,
    header,
    read_csv,
    read_fields,
    read_table,
)
from dlrm_jax.errors import UserError

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
"""Genres of the last 19 columns of 100K's ``u.item``."""

_NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class Tables:
    """The tables of a data set, with the same column names for every format. Missing text is null.

    Attributes:
        ratings: ``user``, ``item``, ``rating`` (stars) and ``time`` (seconds since 1970), in the
            order of time.
        users: ``user`` and some of ``gender``, ``age``, ``occupation``, ``zip``.
        items: ``item`` and some of ``year``, ``genres`` (lists).
        files: files that were read, the ratings first.
        order: row in the file of each rating, from 0.
    """

    ratings: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame
    files: tuple[Path, ...]
    order: Int64[np.ndarray, " N"]


def read_tables(directory: Path) -> Tables:
    """Reads a directory that an archive of GroupLens' unpacks to, or RecBole's form of one.

    | data set | ratings | items | users |
    |---|---|---|---|
    | 100K | ``u.data`` | ``u.item`` | ``u.user`` |
    | 1M, 10M | ``ratings.dat`` | ``movies.dat`` | ``users.dat`` |
    | 20M, 25M, 32M, latest | ``ratings.csv`` | ``movies.csv`` | |
    | RecBole's | ``NAME.inter`` | ``NAME.item`` | ``NAME.user`` |

    Without a file of items or users, only their ids are known.

    Raises:
        UserError: it isn't any of these, or a line is malformed.
    """
    if not directory.is_dir():
        found = "a file" if directory.exists() else "none there"
        raise UserError(
            f"{directory}: expected a directory of MovieLens files, got {found}; name the one that "
            f"the archive unpacks to"
        )
    matches = [(path, name) for name in _FORMATS for path in sorted(directory.glob(name))]
    if len(matches) != 1:
        names = sorted(path.name for path in directory.iterdir())
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise UserError(
            f"{directory}: expected the ratings of one MovieLens data set, that is one of "
            f"{', '.join(_FORMATS)}, found {shown or 'an empty directory'}. Name the directory "
            f"that the archive unpacks to"
        )
    [(path, name)] = matches
    read_ratings, described = _FORMATS[name]
    ratings = read_ratings(path).with_row_index("row").sort("time", maintain_order=True)
    order, ratings, files = ratings["row"].to_numpy(), ratings.drop("row"), [path]
    frames = {key: pl.DataFrame(schema={key: pl.Int64}) for key in ("item", "user")}
    for key, (pattern, read) in described.items():
        file = path.with_name(pattern.replace("*", path.stem))
        if file.exists():
            files.append(file)
            frames[key] = read(file)
            twice = frames[key][key].filter(frames[key][key].is_duplicated())
            if len(twice):
                raise UserError(f"{file}: {key} {twice[0]} comes twice; remove one of the lines")
    return Tables(ratings, frames["user"], frames["item"], tuple(files), order.astype(np.int64))


# -- The formats -----------------------------------------------------------------------

Reader = Callable[[Path], pl.DataFrame]


def _ratings(separator: str) -> Reader:
    columns = {"user": ID, "item": ID, "rating": RATING, "time": TIME}
    return lambda path: read_fields(path, separator, columns)


def _ratings_with_header(separator: str, user: str, item: str) -> Reader:
    columns = {user: ID, item: ID, "rating": RATING, "timestamp": TIME}
    names = {user: "user", item: "item", "timestamp": "time"}
    return lambda path: read_table(path, separator, columns).rename(names)


def _users(separator: str, *names: str) -> Reader:
    columns = {name: {"user": ID, "age": AGE}.get(name, TEXT) for name in names}
    return lambda path: read_fields(path, separator, columns)


def _items_100k(path: Path) -> pl.DataFrame:
    texts = dict.fromkeys(("title", "date", "video date", "address"), TEXT)
    columns = {"item": ID, **texts, **dict.fromkeys(GENRES, FLAG)}
    frame = read_fields(path, "|", columns, "latin-1")
    named = [pl.when(pl.col(genre) == 1).then(pl.lit(genre)) for genre in GENRES]
    return frame.select("item", _year(), genres=pl.concat_list(named).list.drop_nulls())


def _items_1m(path: Path) -> pl.DataFrame:
    frame = read_fields(path, "::", {"item": ID, "title": TEXT, "genres": TEXT}, "latin-1")
    return frame.select("item", _year(), _genres())


def _items_csv(path: Path) -> pl.DataFrame:
    frame = read_csv(path, {"movieId": ID, "title": TEXT, "genres": TEXT})
    return frame.select(pl.col("movieId").alias("item"), _year(), _genres())


def _items_recbole(path: Path) -> pl.DataFrame:
    genres = "class" if "class" in header(path, "\t") else "genre"  # 100K and 1M
    frame = read_table(path, "\t", {"item_id": ID, "release_year": TEXT, genres: TEXT})
    return frame.select(
        pl.col("item_id").alias("item"),
        pl.col("release_year").alias("year"),
        pl.col(genres).alias("genres").str.split(" "),
    )


def _users_recbole(path: Path) -> pl.DataFrame:
    columns = {"user_id": ID, "age": AGE, "gender": TEXT, "occupation": TEXT, "zip_code": TEXT}
    return read_table(path, "\t", columns).rename({"user_id": "user", "zip_code": "zip"})


def _year() -> pl.Expr:
    # The last number in parentheses: some titles end with "(1995) (V)".
    return pl.col("title").str.extract(r".*\((\d{4})\)").alias("year")


def _genres() -> pl.Expr:
    return pl.col("genres").replace(_NO_GENRES, None).str.split("|")


_FORMATS: dict[str, tuple[Reader, dict[str, tuple[str, Reader]]]] = {
    "u.data": (
        _ratings("\t"),
        {
            "item": ("u.item", _items_100k),
            "user": ("u.user", _users("|", "user", "age", "gender", "occupation", "zip")),
        },
    ),
    "ratings.dat": (
        _ratings("::"),
        {
            "item": ("movies.dat", _items_1m),
            "user": ("users.dat", _users("::", "user", "gender", "age", "occupation", "zip")),
        },
    ),
    "ratings.csv": (
        _ratings_with_header(",", "userId", "movieId"),
        {"item": ("movies.csv", _items_csv)},
    ),
    "*.inter": (
        _ratings_with_header("\t", "user_id", "item_id"),
        {"item": ("*.item", _items_recbole), "user": ("*.user", _users_recbole)},
    ),
}
"""For each file of ratings its reader, and names and readers of the files of items and users. ``*``
in their names is what it matches in that of the ratings.
"""

"""Detects the format of a MovieLens directory and reads its tables in one form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

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
    """

    ratings: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame
    files: tuple[Path, ...]


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
        raise UserError(f"{directory}: expected a directory of MovieLens files, there is none")
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
    form, files = _FORMATS[name], [path]

    def described(key: str, part: tuple[str, Reader] | None) -> pl.DataFrame:
        file = part and path.with_name(part[0].replace("*", path.stem))
        if not part or not file or not file.exists():
            return pl.DataFrame(schema={key: pl.Int64})
        files.append(file)
        frame = part[1](file)
        twice = frame[key].filter(frame[key].is_duplicated())
        if len(twice):
            raise UserError(f"{file}: {key} {twice[0]} comes twice; remove one of the lines")
        return frame

    return Tables(
        ratings=form.ratings(path).sort("time", maintain_order=True),
        items=described("item", form.items),
        users=described("user", form.users),
        files=tuple(files),
    )


# -- The formats -----------------------------------------------------------------------

Reader = Callable[[Path], pl.DataFrame]


@dataclass(frozen=True)
class _Format:
    """The readers of one format: of ratings, and of the other files."""

    ratings: Reader
    items: tuple[str, Reader]
    users: tuple[str, Reader] | None = None


def _ratings(separator: str) -> Reader:
    columns = {"user": ID, "item": ID, "rating": RATING, "time": TIME}
    return lambda path: read_fields(path, separator, columns)


def _items_100k(path: Path) -> pl.DataFrame:
    texts = dict.fromkeys(("title", "date", "video date", "address"), TEXT)
    columns = {"item": ID, **texts, **dict.fromkeys(GENRES, FLAG)}
    frame = read_fields(path, "|", columns, "latin-1")
    named = [pl.when(pl.col(genre) == 1).then(pl.lit(genre)) for genre in GENRES]
    return frame.select("item", _year(), genres=pl.concat_list(named).list.drop_nulls())


def _users_100k(path: Path) -> pl.DataFrame:
    columns = {"user": ID, "age": AGE, "gender": TEXT, "occupation": TEXT, "zip": TEXT}
    return read_fields(path, "|", columns)


def _items_1m(path: Path) -> pl.DataFrame:
    frame = read_fields(path, "::", {"item": ID, "title": TEXT, "genres": TEXT}, "latin-1")
    return frame.select("item", _year(), _genres())


def _users_1m(path: Path) -> pl.DataFrame:
    columns = {"user": ID, "gender": TEXT, "age": AGE, "occupation": TEXT, "zip": TEXT}
    return read_fields(path, "::", columns)


def _ratings_csv(path: Path) -> pl.DataFrame:
    columns = {"userId": ID, "movieId": ID, "rating": RATING, "timestamp": TIME}
    frame = read_table(path, ",", columns)
    return frame.rename({"userId": "user", "movieId": "item", "timestamp": "time"})


def _items_csv(path: Path) -> pl.DataFrame:
    frame = read_csv(path, {"movieId": ID, "title": TEXT, "genres": TEXT})
    return frame.select(pl.col("movieId").alias("item"), _year(), _genres())


def _ratings_recbole(path: Path) -> pl.DataFrame:
    columns = {"user_id": ID, "item_id": ID, "rating": RATING, "timestamp": TIME}
    frame = read_table(path, "\t", columns)
    return frame.rename({"user_id": "user", "item_id": "item", "timestamp": "time"})


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


_FORMATS = {
    "u.data": _Format(_ratings("\t"), ("u.item", _items_100k), ("u.user", _users_100k)),
    "ratings.dat": _Format(_ratings("::"), ("movies.dat", _items_1m), ("users.dat", _users_1m)),
    "ratings.csv": _Format(_ratings_csv, ("movies.csv", _items_csv)),
    "*.inter": _Format(_ratings_recbole, ("*.item", _items_recbole), ("*.user", _users_recbole)),
}
"""Formats by their file of ratings. ``*`` in the other names is what it matches in that file's."""

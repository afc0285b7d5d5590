"""Small data sets in each of MovieLens' formats."""

from __future__ import annotations

from pathlib import Path

from dlrm_jax.data.movielens.formats import GENRES

# User, item, stars, time; not in the order of time.
RATINGS = [
    (2, 10, 5, 300), (1, 10, 4, 100), (1, 20, 3, 200), (1, 30, 5, 300), (1, 40, 4, 300),
    (2, 20, 4, 100), (2, 30, 1, 200), (3, 40, 5, 150), (3, 10, 2, 250), (3, 20, 4, 350),
    (1, 20001, 5, 400), (2, 40, 3, 400),
]  # fmt: skip
ITEMS = {
    10: ("Café Müller (1985)", ["Comedy", "Drama"]),
    20: ("Brazil, a (1999) dream (1985) (V)", ["Sci-Fi"]),
    30: ("2001: A Space Odyssey (1968)", ["Drama", "Mystery", "Sci-Fi"]),
    40: ("unknown", []),
}
YEARS = {10: "1985", 20: "1985", 30: "1968", 40: None}
USERS = {1: (24, "M", "artist", "85711"), 2: (53, "F", "other", "94043"), 3: (17, "F", "", "T8H1N")}


def write_100k(directory: Path) -> None:
    write_ratings(directory / "u.data", "\t")
    lines = []
    for item, (title, genres) in ITEMS.items():
        flags = "|".join(str(int(genre in genres)) for genre in GENRES)
        lines.append(f"{item}|{title}|01-Jan-1990||http://example.org|{flags}\n")
    (directory / "u.item").write_text("".join(lines), encoding="latin-1")
    users = [f"{i}|{age}|{sex}|{job}|{code}\n" for i, (age, sex, job, code) in USERS.items()]
    (directory / "u.user").write_text("".join(users))


def write_1m(directory: Path) -> None:
    write_ratings(directory / "ratings.dat", "::")
    items = [f"{item}::{title}::{'|'.join(genres)}\n" for item, (title, genres) in ITEMS.items()]
    (directory / "movies.dat").write_text("".join(items), encoding="latin-1")
    users = [f"{i}::{sex}::{age}::{job}::{code}\n" for i, (age, sex, job, code) in USERS.items()]
    (directory / "users.dat").write_text("".join(users))


def write_csv(directory: Path) -> None:
    write_ratings(directory / "ratings.csv", ",", "userId,movieId,rating,timestamp")
    items = [
        f'{item},"{title}",{"|".join(genres) or "(no genres listed)"}\n'
        for item, (title, genres) in ITEMS.items()
    ]
    text = "movieId,title,genres\n" + "".join(items)
    (directory / "movies.csv").write_text(text, encoding="utf-8")


def write_recbole(directory: Path) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    write_ratings(directory / "small.inter", "\t", header)
    items = [
        f"{item}\t{title}\t{YEARS[item] or ''}\t{' '.join(genres)}\n"
        for item, (title, genres) in ITEMS.items()
    ]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    (directory / "small.item").write_text(header + "".join(items), encoding="utf-8")
    users = ["\t".join(map(str, (i, *told))) + "\n" for i, told in USERS.items()]
    header = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    (directory / "small.user").write_text(header + "".join(users))


def write_ratings(path: Path, separator: str, header: str = "") -> None:
    lines = [header] * bool(header) + [separator.join(map(str, row)) for row in RATINGS]
    path.write_text("\n".join(lines) + "\n")

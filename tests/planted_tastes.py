"""Ratings of users with tastes, in the files of MovieLens 100K and 1M."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FORMS = {"u.data": "\t", "ratings.dat": "::"}
"""Separators of the files, by name."""


def write_tastes(
    directory: Path, form: str, users: int, items: int, each: int, seed: int = 0
) -> Path:
    """Writes ratings that users' and items' tastes explain, not in the order of time.

    Args:
        directory: directory to write to.
        form: name of the file, one of `FORMS`.
        users: number of users.
        items: number of items; some have few ratings, so some are new in the held-out rows.
        each: number of ratings of each user.
        seed: seed of everything.
    """
    rng = np.random.default_rng(seed)
    popular = 1 / np.arange(2, items + 2)
    tastes, flavours = rng.normal(size=(users, 3)), rng.normal(size=(items, 3))
    lines = []
    for user in range(users):
        rated = rng.choice(items, each, replace=False, p=popular / popular.sum())
        liking = flavours[rated] @ tastes[user] + 0.5 * rng.normal(size=each)
        stars = np.clip(np.rint(3.4 + liking), 1, 5).astype(int)
        times = rng.integers(874_724_710, 893_286_638, each)
        # Not the numbers of rows: ids are what the files call them.
        rows = zip(rated + 1, stars, times, strict=True)
        lines += [FORMS[form].join(map(str, (user + 1, *row))) for row in rows]
    path = directory / form
    path.write_text("".join(f"{lines[i]}\n" for i in rng.permutation(len(lines))))
    return path


def write_split(path: Path, rows: int, seed: int = 0) -> None:
    """Writes which rows are for what, 8:1:1 at random, as ``--split=rows=FILE`` reads it."""
    parts = np.repeat(["train", "validation", "test"], [rows - rows // 5, rows // 10, rows // 10])
    shuffled = np.random.default_rng([seed, 1]).permutation(parts)
    path.write_text("".join(f"{part}\n" for part in shuffled))

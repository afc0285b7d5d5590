"""MovieLens as data sets: will a user like an item, and which item comes next?"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.formats.compression import file_hash
from dlrm_jax.data.movielens.examples import Encoder, Log
from dlrm_jax.data.movielens.formats import Tables, read_tables
from dlrm_jax.data.movielens.negatives import Negatives
from dlrm_jax.data.movielens.splits import split_rows
from dlrm_jax.errors import UserError

VERSION = 1
"""Part of the fingerprint; raise it with every change that changes the arrays."""

# What random numbers are drawn for, besides the split.
_TRAIN, _VALIDATION, _TEST = 2, 3, 4


@dataclass(frozen=True)
class MovieLens:
    """A data set and what its features are.

    Attributes:
        dataset: without dense features.
        features: the name of each, in the order of the ids: those of users, those of items, and
            ``history`` if there is one.
        tables: for each feature, whose ids it has: its own, but those of ``item`` for ``history``,
            so that both can read one table.
    """

    dataset: Dataset
    features: tuple[str, ...]
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """Users' choices, each to be found among items that the user hasn't rated.

    Attributes:
        movielens: whose training split is that of epoch 0. In the others, each ``candidates``
            examples that follow one another are a user's, and the first of them is the choice.
        candidates: of a user, the choice included.
        train: makes the training split of an epoch, from 0, which has negatives of its own.
    """

    movielens: MovieLens
    candidates: int
    train: Callable[[int], Split]


def load_movielens(
    directory: Path,
    split: str = "random",
    seed: int = 0,
    features: Sequence[str] | None = None,
    history: int = 0,
    threshold: float = 4.0,
) -> MovieLens:
    """Ratings as examples: label 1 where the user likes the item.

    Vocabularies are learned from the training part alone, and so are histories.

    Args:
        directory: see `read_tables`.
        split: one of `SPLITS`, see `split_rows`.
        seed: of the random split.
        features: names, of `OF_USERS` and `OF_ITEMS`; None for the usual ones.
        history: the last items that the user has liked before, as many as this; 0 for none.
        threshold: stars from which on an item is liked.

    Raises:
        UserError: the directory or an argument can't be used as given.
    """
    _check_range("seed", seed, 0)
    tables = read_tables(directory)
    log = Log(tables)
    rows = split_rows(log.users, split, seed)
    labels = (tables.ratings["rating"] >= threshold).to_numpy().astype(np.float32)
    liked = rows.train[labels[rows.train] == 1]
    encoder = Encoder(tables, log, rows.train, liked, features, history)
    splits = [
        encoder.examples(log.users[r], log.items[r, None], log.times[r], labels[r, None])
        for r in rows
    ]
    return _movielens(
        encoder, splits, tables, log, f"{split} split, seed {seed}, liked from {threshold:g}"
    )


def load_ranking(
    directory: Path,
    seed: int = 0,
    features: Sequence[str] | None = None,
    history: int = 0,
    negatives: int = 4,
    candidates: int = 100,
) -> Ranking:
    """Ratings as choices, whatever the stars: each user's last one is to be found.

    As in He et al., 2017, "Neural Collaborative Filtering", section 4.1, but that the last one but
    one validates.

    Args:
        directory: see `read_tables`.
        seed: of all negatives.
        features: names, of `OF_USERS` and `OF_ITEMS`; None for the usual ones.
        history: the last items that the user has rated before, as many as this; 0 for none.
        negatives: for each training example, drawn among the items that the user hasn't rated in
            the training part. What validates and tests may be among them: a model could find it
            by never having been told that it is wrong.
        candidates: for each choice that validates or tests, itself included. The others are
            different items that the user hasn't rated in any part.

    Raises:
        UserError: the directory or an argument can't be used as given.
    """
    _check_range("seed", seed, 0)
    _check_range("negatives", negatives, 0)
    _check_range("candidates", candidates, 2)
    tables = read_tables(directory)
    log = Log(tables)
    rows = split_rows(log.users, "leave_one_out", seed)
    encoder = Encoder(tables, log, rows.train, rows.train, features, history)
    train = functools.partial(_train, encoder, log, rows.train, negatives, seed)
    rated = Negatives(log.users, log.items, len(log.item_ids))
    choices = [
        _beside(encoder, log, chosen, rated, candidates - 1, np.random.default_rng([seed, purpose]))
        for chosen, purpose in ((rows.validation, _VALIDATION), (rows.test, _TEST))
    ]
    about = f"{candidates} candidates, {negatives} negatives an example, seed {seed}"
    movielens = _movielens(encoder, [train(0), *choices], tables, log, about)
    return Ranking(movielens, candidates, train)


def _train(
    encoder: Encoder,
    log: Log,
    rows: Int64[np.ndarray, " n"],
    negatives: int,
    seed: int,
    epoch: int,
) -> Split:
    rated = Negatives(log.users[rows], log.items[rows], len(log.item_ids))
    rng = np.random.default_rng([seed, _TRAIN, epoch + 1])  # [a, b, 0] would be as [a, b]
    return _beside(encoder, log, rows, rated, negatives, rng)


def _beside(
    encoder: Encoder,
    log: Log,
    rows: Int64[np.ndarray, " n"],
    rated: Negatives,
    count: int,
    rng: np.random.Generator,
) -> Split:
    """Each rating with label 1, and behind it so many negatives of its user at its time."""
    drawn = rated.draw(log.users[rows], count, rng)
    items = np.concatenate([log.items[rows, None], drawn], axis=1)
    labels = np.zeros(items.shape, np.float32)
    labels[:, 0] = 1
    return encoder.examples(log.users[rows], items, log.times[rows], labels)


def _movielens(
    encoder: Encoder, splits: Sequence[Split], tables: Tables, log: Log, about: str
) -> MovieLens:
    train, validation, test = splits
    made_of = (VERSION, [file_hash(path) for path in tables.files], encoder.features, about)
    dataset = Dataset(
        train=train,
        validation=validation,
        test=test,
        table_rows=encoder.table_rows,
        bag_lengths=encoder.bag_lengths,
        fingerprint=hashlib.blake2b(
            repr(("movielens", *made_of, encoder.bag_lengths)).encode(), digest_size=16
        ).hexdigest(),
        source=(
            f"{tables.files[0]}: {len(log):,} ratings by {len(log.user_ids):,} users of "
            f"{len(log.item_ids):,} items, {about}"
        ),
    )
    return MovieLens(dataset, encoder.features, encoder.tables)


def _check_range(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise UserError(f"{name} must be at least {lowest}, got {value}")

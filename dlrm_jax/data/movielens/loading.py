"""MovieLens as data sets: will a user like an item, and which item comes next?"""

from __future__ import annotations

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
from dlrm_jax.data.movielens.splits import GIVEN, Rows, check_split, given_rows, split_rows
from dlrm_jax.errors import UserError

VERSION = 1
"""It enters the fingerprint; raise it with every change of the arrays."""

# The uses of random numbers, besides the split.
_TRAIN, _VALIDATION, _TEST = 2, 3, 4


@dataclass(frozen=True)
class MovieLens:
    """A data set and its features.

    Attributes:
        dataset: the data set, without dense features.
        features: names of the features, in the order of the ids: user features, item features, and
            ``history`` if there is one.
        tables: name of the feature whose table each feature reads: its own name, except ``item``
            for ``history``, so that both can share one table.
    """

    dataset: Dataset
    features: tuple[str, ...]
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """Users' choices, each ranked among items that the user hasn't rated.

    Attributes:
        movielens: the data set; its training split is that of epoch 0. In the other splits, each
            ``candidates`` consecutive examples belong to one user, and the first is the choice.
        candidates: number of candidates of a user, the choice included.
        train: function that makes the training split of an epoch, from 0, with new negatives.
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
    """Loads ratings as examples: label 1 if the user likes the item.

    Vocabularies and histories come from the training split alone.

    Args:
        directory: directory of the files, see `read_tables`.
        split: name of the split, one of `SPLITS`, see `split_rows`; or ``rows=FILE`` for that of a
            file, see `given_rows`.
        seed: seed of the random split.
        features: names of features, in `USER_FEATURES` or `ITEM_FEATURES`; None for the default.
        history: number of items in a history, the last ones that the user liked before; 0 for no
            history.
        threshold: smallest number of stars of a liked item.

    Raises:
        UserError: the directory can't be read, or an argument is out of range.
    """
    _check_range("seed", seed, 0)
    check_split(split)
    tables = read_tables(directory)
    log = Log(tables)
    rows, about = _split(log, tables, split, seed)
    labels = (tables.ratings["rating"] >= threshold).to_numpy().astype(np.float32)
    liked = rows.train[labels[rows.train] == 1]
    encoder = Encoder(tables, log, rows.train, liked, features, history)
    splits = [
        encoder.examples(log.users[r], log.items[r, None], log.times[r], labels[r, None])
        for r in rows
    ]
    return _movielens(
        encoder, splits, tables, log, f"{about}, seed {seed}, liked from {threshold:g}"
    )


def load_ranking(
    directory: Path,
    seed: int = 0,
    features: Sequence[str] | None = None,
    history: int = 0,
    negatives: int = 4,
    candidates: int = 100,
    split: str = "leave_one_out",
) -> Ranking:
    """Loads ratings as choices, whatever the stars; the task is to find each user's last one.

    The protocol is that of He et al., 2017, "Neural Collaborative Filtering", section 4.1, except
    that each user's last rating but one is for validation.

    Args:
        directory: directory of the files, see `read_tables`.
        seed: seed of all negatives.
        features: names of features, in `USER_FEATURES` or `ITEM_FEATURES`; None for the default.
        history: number of items in a history, the last ones that the user rated before; 0 for no
            history.
        negatives: number of negatives per training example, drawn among the items that the user
            hasn't rated in the training split. They may include the choices of validation and
            test. Otherwise a model could find a choice by its never being a negative.
        candidates: number of candidates per choice of validation and test, the choice included.
            The others are distinct items that the user hasn't rated in any split.
        split: name of the split, as for `load_movielens`: ratings of validation and test are the
            choices.

    Raises:
        UserError: the directory can't be read, or an argument is out of range.
    """
    _check_range("seed", seed, 0)
    check_split(split)
    _check_range("negatives", negatives, 0)
    _check_range("candidates", candidates, 2)
    tables = read_tables(directory)
    log = Log(tables)
    rows, name = _split(log, tables, split, seed)
    encoder = Encoder(tables, log, rows.train, rows.train, features, history)
    rated = Negatives(log.users, log.items, len(log.item_ids))
    rated_in_train = Negatives(log.users[rows.train], log.items[rows.train], len(log.item_ids))

    def train(epoch: int) -> Split:
        rng = np.random.default_rng([seed, _TRAIN, epoch + 1])  # [a, b, 0] would be as [a, b]
        return _beside(encoder, log, rows.train, rated_in_train, negatives, rng)

    choices = [
        _beside(encoder, log, chosen, rated, candidates - 1, np.random.default_rng([seed, purpose]))
        for chosen, purpose in ((rows.validation, _VALIDATION), (rows.test, _TEST))
    ]
    about = f"{candidates} candidates, {negatives} negatives an example, seed {seed}"
    if split != "leave_one_out":
        about += f", {name}"
    movielens = _movielens(encoder, [train(0), *choices], tables, log, about)
    return Ranking(movielens, candidates, train)


def _split(log: Log, tables: Tables, split: str, seed: int) -> tuple[Rows, str]:
    """The rows of each split, and what tells this split from others."""
    if not split.startswith(GIVEN):
        return split_rows(log.users, split, seed), f"{split} split"
    path = Path(split.removeprefix(GIVEN))
    rows = given_rows(path, tables.order)
    return rows, f"split given by {file_hash(path)}"


def _beside(
    encoder: Encoder,
    log: Log,
    rows: Int64[np.ndarray, " n"],
    rated: Negatives,
    count: int,
    rng: np.random.Generator,
) -> Split:
    """The ratings with label 1, each followed by ``count`` negatives of its user at its time."""
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
        columns=encoder.features,
        shared={
            name: table
            for name, table in zip(encoder.features, encoder.tables, strict=True)
            if name != table
        },
    )
    return MovieLens(dataset, encoder.features, encoder.tables)


def _check_range(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise UserError(f"{name}: expected at least {lowest}, got {value}")

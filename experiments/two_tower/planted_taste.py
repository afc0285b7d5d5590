"""Generated choices: users draw items by a planted taste, so the best possible recall is known."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int32

from dlrm_jax.data.arrays import Dataset, Examples, Split

GROUPS = 100
_FACTORS = 8
_USERS_PER_CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices of U users among I items, and their causes.

    Attributes:
        known: K distinct items of each user, in no order.
        held_out: one more item of each user, for the test.
        groups: group of each user, below `GROUPS`; users of one group like similar items.
        likes: vector of each user.
        qualities: vector of each item.
        fame: part of each item's score that is equal for all users.
    """

    known: Int32[np.ndarray, "U K"]
    held_out: Int32[np.ndarray, " U"]
    groups: Int32[np.ndarray, " U"]
    likes: Float32[np.ndarray, "U F"]
    qualities: Float32[np.ndarray, "I F"]
    fame: Float32[np.ndarray, " I"]

    def taste(self, users: Int32[np.ndarray, " n"]) -> Float32[np.ndarray, "n I"]:
        """The scores of all items; users choose by the softmax of their scores."""
        return self.likes[users] @ self.qualities.T + self.fame

    def popularity(self) -> Float32[np.ndarray, " I"]:
        """The number of users who know each item."""
        return np.bincount(self.known.ravel(), minlength=len(self.fame)).astype(np.float32)


def generate(users: int, items: int, known: int, seed: int) -> Choices:
    """Draws ``known`` + 1 distinct items for every user."""
    rng = np.random.default_rng(seed)
    likes = rng.normal(size=(users, _FACTORS)).astype(np.float32)
    groups = np.argmax(likes @ rng.normal(size=(_FACTORS, GROUPS)), axis=1).astype(np.int32)
    drawn = np.empty((users, known + 1), np.int32)
    choices = Choices(
        known=drawn[:, :known],
        held_out=drawn[:, known],
        groups=groups,
        likes=likes,
        qualities=rng.normal(size=(items, _FACTORS)).astype(np.float32),
        fame=rng.normal(size=items).astype(np.float32),
    )
    for first in range(0, users, _USERS_PER_CHUNK):
        chunk = np.arange(first, min(first + _USERS_PER_CHUNK, users), dtype=np.int32)
        # The items with the largest scores after adding Gumbel noise are draws without replacement.
        noisy = choices.taste(chunk) + rng.gumbel(size=(len(chunk), items))
        largest = np.argpartition(-noisy, known, axis=1)[:, : known + 1]
        drawn[chunk] = rng.permuted(largest, axis=1)
    return choices


def as_dataset(choices: Choices, seed: int) -> Dataset:
    """The choices as a log: ``group``, the ``known`` items, and the ``item`` of a row.

    Each known item of a user is that of a training row, in which the user's others are known. In
    test, a user's row has all known items and the held-out one.
    """
    users, known = choices.known.shape
    group, own = choices.groups[:, None], np.arange(known)
    rows = []
    for place in own:
        others = choices.known.copy()
        others[:, place] = -1
        rows.append(np.column_stack([group, others, choices.known[:, place]]))
    train = _examples(np.concatenate(rows))
    test = Split((_examples(np.column_stack([group, choices.known, choices.held_out])),))
    items = len(choices.fame)
    return Dataset(
        Split((train,)),
        test[:0],
        test,
        table_rows=(GROUPS, items, items),
        bag_lengths=(1, known, 1),
        fingerprint=f"planted taste of {users} users, {items} items, {known} known, seed {seed}",
        source=f"{len(train):,} generated choices of {users:,} users among {items:,} items",
        columns=("group", "known", "item"),
        shared={"known": "item"},
    )


def _examples(ids: Int32[np.ndarray, "N C"]) -> Examples:
    return Examples(
        np.empty((len(ids), 0), np.float32),
        np.ascontiguousarray(ids, np.int32),
        np.ones(len(ids), np.float32),
    )

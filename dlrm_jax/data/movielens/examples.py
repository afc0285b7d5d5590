"""Examples made of users, items and times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.movielens.features import OF_ITEMS, OF_USERS, encode, known_features
from dlrm_jax.data.movielens.formats import Tables
from dlrm_jax.data.movielens.history import History
from dlrm_jax.errors import UserError


class Log:
    """Ratings as arrays, in the order of time.

    Args:
        tables: of the data set.

    Attributes:
        users: index of who rated, among ``user_ids``.
        items: index of what was rated, among ``item_ids``.
        times: in seconds since 1970.
        user_ids: those of the data set, ascending.
        item_ids: the same of items; one that nobody has rated isn't there.
    """

    def __init__(self, tables: Tables):
        ratings = tables.ratings
        self.user_ids, self.users = np.unique(ratings["user"], return_inverse=True)
        self.item_ids, self.items = np.unique(ratings["item"], return_inverse=True)
        self.times = ratings["time"].to_numpy()

    def __len__(self) -> int:
        return len(self.times)


class Encoder:
    """Makes examples: the user's features, then the item's, then the history.

    Args:
        tables: of the data set.
        log: their ratings.
        train: rows of the log that are learned from.
        liked: those among them that come into histories.
        asked: names of features; None for all that are usual.
        history: items of a history; 0 for none.

    Attributes:
        features: their names, ``history`` included.
        tables: for each feature, whose ids it has.
        table_rows: of each feature's table.
        bag_lengths: of each feature.

    Raises:
        UserError: the data set doesn't have a feature, or an argument is out of range.
    """

    def __init__(
        self,
        tables: Tables,
        log: Log,
        train: Int64[np.ndarray, " n"],
        liked: Int64[np.ndarray, " m"],
        asked: Sequence[str] | None,
        history: int,
    ):
        names = known_features(tables, asked)
        if history < 0:
            raise UserError(f"history: expected a number of items, 0 for none, got {history}")
        if history and "item" not in names:
            raise UserError("history: it has the ids of the feature item, which isn't asked for")
        users = pl.DataFrame({"user": log.user_ids}).join(
            tables.users, on="user", how="left", maintain_order="left"
        )
        items = pl.DataFrame({"item": log.item_ids}).join(
            tables.items, on="item", how="left", maintain_order="left"
        )
        self._users = encode(users, OF_USERS, names, log.users[train])
        self._items = encode(items, OF_ITEMS, names, log.items[train])
        self._history = None
        self.features = (*self._users.names, *self._items.names)
        self.tables = self.features
        self.table_rows = (*self._users.rows, *self._items.rows)
        self.bag_lengths = (*self._users.lengths, *self._items.lengths)
        if history:
            item_ids = self._items.ids[:, 0]  # the item itself is its first feature
            self._history = History(
                log.users[liked], log.times[liked], item_ids[log.items[liked]], history
            )
            self.features += ("history",)
            self.tables += ("item",)
            self.table_rows += (self._items.rows[0],)
            self.bag_lengths += (history,)

    def examples(
        self,
        users: Int64[np.ndarray, " N"],
        items: Int64[np.ndarray, "N K"],
        times: Int64[np.ndarray, " N"],
        labels: Float32[np.ndarray, "N K"],
    ) -> Split:
        """N·K examples: for each user, by index, K items at a time that its history ends before."""
        per_user = [self._users.ids[users]]
        if self._history is not None:
            per_user.append(self._history.before(users, times))
        user_ids, *histories = (np.repeat(ids, items.shape[1], axis=0) for ids in per_user)
        ids = np.concatenate([user_ids, self._items.ids[items.ravel()], *histories], axis=1)
        return Split((Examples(np.empty((len(ids), 0), np.float32), ids, labels.ravel()),))

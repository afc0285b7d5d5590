"""Makes examples of users, items and times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.movielens.features import ITEM_FEATURES, USER_FEATURES, encode, select_features
from dlrm_jax.data.movielens.formats import Tables
from dlrm_jax.data.movielens.history import History
from dlrm_jax.errors import UserError


class Log:
    """Ratings as arrays, in the order of time.

    Args:
        tables: tables of the data set.

    Attributes:
        users: index of each rating's user in ``user_ids``, [N].
        items: index of each rating's item in ``item_ids``, [N].
        times: time of each rating in seconds since 1970, [N].
        user_ids: ids of the users, ascending.
        item_ids: ids of the rated items, ascending; unrated items are missing.
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
        tables: tables of the data set.
        log: ratings of the data set.
        train: rows of the log that are for training.
        liked: rows among them that enter histories.
        features: names of the wanted features; None for the default ones.
        history: number of items of a history; 0 for no history.

    Attributes:
        features: names of the features, ``history`` included.
        tables: name of the feature whose table each feature reads.
        table_rows: rows of each feature's table.
        bag_lengths: ids per example of each feature.

    Raises:
        UserError: the data set doesn't have a feature, or an argument is out of range.
    """

    def __init__(
        self,
        tables: Tables,
        log: Log,
        train: Int64[np.ndarray, " n"],
        liked: Int64[np.ndarray, " m"],
        features: Sequence[str] | None,
        history: int,
    ):
        names = select_features(tables, features)
        if history < 0:
            raise UserError(f"history: expected a number of items, 0 for none, got {history}")
        if history and "item" not in names:
            raise UserError("history: it has the ids of the feature item, which is missing")
        users = pl.DataFrame({"user": log.user_ids}).join(
            tables.users, on="user", how="left", maintain_order="left"
        )
        items = pl.DataFrame({"item": log.item_ids}).join(
            tables.items, on="item", how="left", maintain_order="left"
        )
        self._users = encode(users, USER_FEATURES, names, log.users[train])
        self._items = encode(items, ITEM_FEATURES, names, log.items[train])
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
        """Makes N·K examples: K items for each user, with the history before the user's time.

        Users and items are given by their index, times in seconds since 1970.
        """
        per_user = [self._users.ids[users]]
        if self._history is not None:
            per_user.append(self._history.before(users, times))
        user_ids, *histories = (np.repeat(ids, items.shape[1], axis=0) for ids in per_user)
        ids = np.concatenate([user_ids, self._items.ids[items.ravel()], *histories], axis=1)
        return Split((Examples(np.empty((len(ids), 0), np.float32), ids, labels.ravel()),))

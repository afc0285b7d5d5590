"""What two towers of a data set learn and are asked: sides, items, training rows, questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.arrays import Dataset, Examples
from dlrm_jax.errors import UserError
from dlrm_jax.retrieval.columns import Side, dense_names, find_sides
from dlrm_jax.retrieval.evaluation import Questions, find_questions
from dlrm_jax.retrieval.files import Values
from dlrm_jax.retrieval.items import Items, find_items
from dlrm_jax.retrieval.settings import RetrievalSettings


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of a run.

    Attributes:
        data: data set.
        settings: settings of the towers.
        user: side of the user.
        item: side of the item.
        items: all items of the training rows.
        values: values of the data's ids.
        train: positive rows of the training split, and their items.
        questions: positive rows of validation and test, by split; splits without any are left out.
        known: function that gives the numbers of items that aren't ranked for examples.
    """

    data: Dataset
    settings: RetrievalSettings
    user: Side
    item: Side
    items: Items
    values: Values
    train: Questions
    questions: dict[str, Questions]
    known: Callable[[Examples], Int64[np.ndarray, "n E"]]


def sides_of(data: Dataset, settings: RetrievalSettings) -> tuple[Side, Side]:
    """The columns of user and item; no example is read.

    Raises:
        UserError: they don't fit the data, see `find_sides`, or ``exclude`` doesn't.
    """
    dense = dense_names(data.directory, data.train.dense_features)
    user, item = find_sides(
        data,
        dense,
        settings.user_columns,
        settings.item_columns,
        settings.user_id,
        settings.item_id,
    )
    _places_of_excluded(data, settings.exclude, _key(data, item))
    return user, item


def chosen_label(data: Dataset, label: str) -> tuple[str, ...]:
    """The label that says which rows are choices: the one that is given, or the main one.

    Args:
        data: data set.
        label: name of a label, or empty.

    Returns:
        ``labels`` of the config: empty for data with one label, if none is given.

    Raises:
        UserError: the data have no such label.
    """
    if label and label not in data.labels:
        there = ", ".join(data.labels)
        raise UserError(f"label: the data have no label {label!r}; they have {there}")
    return (label or data.labels[0],) if len(data.labels) > 1 else ()


def make_task(data: Dataset, settings: RetrievalSettings) -> Task:
    """Finds the columns, then the items and the positive rows.

    Raises:
        UserError: see `sides_of`; no training row is positive; or there are fewer items than a k
            of ``recall_at``.
    """
    user, item = sides_of(data, settings)
    key = item.key_feature
    assert key is not None
    excluded = _places_of_excluded(data, settings.exclude, _key(data, item))
    values = Values(data)
    items = find_items(data.train, item, data.table_rows[key], values.known(key))
    if max(settings.recall_at) > len(items):
        raise UserError(
            f"recall_at: {max(settings.recall_at)} is more than the {len(items):,} items of the "
            f"training rows"
        )

    def known(examples: Examples) -> Int64[np.ndarray, "n E"]:
        return items.numbers_of(np.asarray(examples.ids)[:, excluded])

    questions = {
        name: find_questions(split, item, items)
        for name, split in data.splits.items()
        if name != "train" and len(split)
    }
    return Task(
        data,
        settings,
        user,
        item,
        items,
        values,
        find_questions(data.train, item, items),
        {name: found for name, found in questions.items() if len(found)},
        known,
    )


def _key(data: Dataset, item: Side) -> str:
    """The name of the column that tells items apart."""
    assert item.key_feature is not None
    return data.columns[item.key_feature]


def _places_of_excluded(data: Dataset, exclude: str, key: str) -> slice:
    """The places in the id array of the column of items that aren't ranked."""
    if not exclude:
        return slice(0, 0)
    if exclude not in data.columns:
        raise UserError(f"exclude: the data have no categorical column {exclude!r}")
    if data.shared.get(exclude, exclude) != data.shared.get(key, key):
        raise UserError(
            f'exclude: expected a column with the vocabulary of {key}, as "shared" of the schema '
            f"says it, got {exclude!r}"
        )
    if exclude == key:
        raise UserError(f"exclude: {exclude!r} is the item itself; name a column of known items")
    feature = data.columns.index(exclude)
    start = sum(data.bag_lengths[:feature])
    return slice(start, start + data.bag_lengths[feature])

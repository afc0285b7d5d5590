"""Columns, items, training rows and negatives of a small log, against plain loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import small_log
from small_log import SETTINGS

from dlrm_jax.data.arrays import Split
from dlrm_jax.errors import UserError
from dlrm_jax.retrieval.batches import RetrievalBatches
from dlrm_jax.retrieval.items import find_items
from dlrm_jax.retrieval.task import Task, chosen_label, make_task, sides_of


@pytest.fixture(scope="module")
def task() -> Task:
    return small_log.task()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"user_columns": ("user", "I2", "dash")},
            "user_columns: the data have no column 'dash'; there are page, user, item, viewed, "
            "shop, and dense I1, I2, I3",
        ),
        (
            {"item_columns": ("item", "user")},
            "item_columns: 'user' is one of user_columns, too; a ",
        ),
        ({"item_columns": ("item", "item")}, "item_columns: 'item' is there twice; leave one out"),
        ({"item_columns": ()}, "item_columns: expected at least one column, got none"),
        ({"item_columns": ("I1", "item")}, "item_id: expected a categorical column with one id"),
        ({"item_id": "page"}, "item_id: expected one of item, shop, I1, got 'page'"),
        ({"user_id": "viewed"}, "user_id: expected a categorical column with one id in each row"),
        ({"exclude": "seen"}, "exclude: the data have no categorical column 'seen'"),
        ({"exclude": "user"}, "exclude: expected a column with the vocabulary of item"),
        ({"exclude": "item"}, "exclude: 'item' is the item itself"),
    ],
)
def test_columns_that_do_not_fit(changes: dict[str, object], message: str):
    settings = dataclasses.replace(SETTINGS, **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError) as raised:
        sides_of(small_log.dataset(), settings)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"recall_at": ()}, "recall_at: expected at least one number, got none"),
    ],
)
def test_settings_that_are_not_allowed(changes: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **changes)  # pyright: ignore[reportArgumentType]


def test_more_items_are_asked_for_than_there_are():
    with pytest.raises(UserError) as raised:
        small_log.task(dataclasses.replace(SETTINGS, recall_at=(2, 11)))
    assert str(raised.value) == "recall_at: 11 is more than the 10 items of the training rows"


def test_one_of_several_labels():
    data = small_log.dataset()
    assert chosen_label(data, "") == chosen_label(data, "label") == ()
    several = dataclasses.replace(data)
    object.__setattr__(several, "labels", ("clicked", "purchased"))
    assert chosen_label(several, "") == ("clicked",)
    assert chosen_label(several, "purchased") == ("purchased",)
    with pytest.raises(UserError, match="label: the data have no label 'sold'; they have clicked"):
        chosen_label(several, "sold")


def test_no_positive_rows():
    data = small_log.dataset()
    none = [dataclasses.replace(day, labels=day.labels * 0) for day in data.train.days]
    with pytest.raises(UserError, match="train: expected rows with label 1 and an item"):
        make_task(dataclasses.replace(data, train=Split(tuple(none))), SETTINGS)


def test_items_are_those_of_the_training_rows(task: Task):
    train, items = task.data.train, task.items
    ids = np.concatenate([np.asarray(day.ids) for day in train.days])
    dense = np.concatenate([day.dense for day in train.days])
    labels = np.concatenate([day.labels for day in train.days])
    assert items.keys.tolist() == sorted(set(ids[:, 2].tolist()))
    for number, key in enumerate(items.keys):
        own = np.flatnonzero(ids[:, 2] == key)
        assert items.ids[number].tolist() == [key, ids[own[-1], 6]]
        assert items.dense[number] == dense[own[-1], 0]
        assert items.rows[number] == len(own)
        assert items.positives[number] == labels[own].sum()
    chosen = np.exp(items.log_q) * items.positives.sum()
    np.testing.assert_allclose(chosen, np.maximum(items.positives, 1), rtol=1e-5)


def test_ids_without_a_value_are_no_items(task: Task):
    known = np.array([1, 4, 9, 10])
    items = find_items(task.data.train, task.item, 11, known)
    assert items.keys.tolist() == [1, 4, 9]
    assert items.numbers_of(np.array([4, 0, 10, -1, 9], np.int32)).tolist() == [1, -1, -1, -1, 2]


def test_questions_are_positive_rows(task: Task):
    for name, asked in {"train": task.train, **task.questions}.items():
        split = task.data.splits[name]
        labels = np.concatenate([day.labels for day in split.days])
        keys = np.concatenate([np.asarray(day.ids)[:, 2] for day in split.days])
        assert asked.rows.tolist() == np.flatnonzero(labels == 1).tolist()
        assert task.items.keys[asked.chosen].tolist() == keys[asked.rows].tolist()
        assert asked.new == 0
    few = task.questions["test"].first(5)
    assert len(few) == 5
    assert set(few.rows) < set(task.questions["test"].rows)


def test_excluded_items_are_those_of_the_bag():
    task = small_log.task(dataclasses.replace(SETTINGS, exclude="viewed"))
    examples = task.data.test.days[0]
    bags = np.asarray(examples.ids)[:, 3:6]
    expected = [[list(task.items.keys).index(x) if x in task.items.keys else -1 for x in bag]
                for bag in bags]  # fmt: skip
    assert task.known(examples).tolist() == expected


def test_an_epoch_has_each_positive_row_once(task: Task):
    config = small_log.config(task)
    batches = RetrievalBatches(task, config, 1)
    assert batches.steps_per_epoch == len(task.train) // 16
    seen = np.concatenate([batches[i].dense[:16, 1] for i in range(batches.steps_per_epoch)])
    dense = np.concatenate([day.dense[day.labels == 1, 0] for day in task.data.train.days])
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(dense.tolist())


@pytest.mark.parametrize("sampler", ["uniform", "frequency"])
def test_negatives_are_drawn_as_their_probabilities_say(sampler: str):
    settings = dataclasses.replace(SETTINGS, sampler=sampler, negatives=4000)
    task = small_log.task(settings)
    batch = RetrievalBatches(task, small_log.config(task), 1)[3]
    drawn = batch.items[16:]
    shares = np.bincount(drawn, minlength=10) / 4000
    expected = {"uniform": np.full(10, 0.1), "frequency": task.items.rows / 160}[sampler]
    np.testing.assert_allclose(shares, expected, atol=0.03)  # 0.008 is one standard deviation
    np.testing.assert_allclose(np.exp(batch.log_q[16:]), expected[drawn], rtol=1e-5)
    assert (batch.ids[16:, :4] == -1).all()
    assert (batch.ids[16:, 4:] == task.items.ids[drawn]).all()
    assert not batch.sample_weights[16:].any()


def test_the_devices_share_out_one_batch(task: Task):
    config = small_log.config(task)
    one, eight = (RetrievalBatches(task, config, devices)[2] for devices in (1, 8))
    for whole, parts in zip(one, eight, strict=True):
        own = parts.reshape(8, 3, *parts.shape[1:])  # two positives and a negative each
        assert (np.concatenate([*own[:, :2], *own[:, 2:]]) == whole).all()


def test_a_batch_of_more_rows_than_there_are(task: Task):
    config = dataclasses.replace(small_log.config(task), batch_size=128)
    with pytest.raises(UserError, match="batch_size: expected at most the 85 training rows with"):
        RetrievalBatches(task, config, 1)

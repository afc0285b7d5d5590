"""Data sets against what a loop over the ratings says."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from movielens_files import RATINGS, write_1m, write_csv, write_recbole

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.movielens.loading import load_movielens, load_ranking
from dlrm_jax.data.movielens.splits import split_rows
from dlrm_jax.data.special_ids import FIRST_VALUE, MISSING, UNSEEN
from dlrm_jax.errors import UserError

FEATURES = ("user", "gender", "age_group", "occupation", "zip", "item", "year", "genres")


@pytest.fixture
def small(tmp_path):
    write_1m(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """800 ratings by 20 users of 90 items, many at the same time."""
    directory = tmp_path_factory.mktemp("movielens")
    rng = np.random.default_rng(0)
    pairs = rng.permutation(20 * 90)[:800]
    rows = zip(
        pairs // 90, pairs % 90, rng.integers(1, 6, 800), rng.integers(0, 99, 800), strict=True
    )
    lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in rows)]
    (directory / "ratings.csv").write_text("\n".join(lines) + "\n")
    return directory


def columns(movielens, split):
    """The ids of each feature."""
    ends = np.cumsum(movielens.dataset.bag_lengths)[:-1]
    ids = np.split(getattr(movielens.dataset, split).days[0].ids, ends, axis=1)
    return dict(zip(movielens.features, ids, strict=True))


def test_features_follow_the_vocabulary_of_the_training_part(small):
    movielens = load_movielens(small, split="leave_one_out")
    dataset = movielens.dataset
    assert movielens.features == movielens.tables == FEATURES
    assert dataset.bag_lengths == (1, 1, 1, 1, 1, 1, 1, 3)
    # Left in training: item 10 by user 1, 20 by 1 and 2, 30 by 1 and 2, 40 by 3.
    train, test = columns(movielens, "train"), columns(movielens, "test")
    twenty, thirty, ten, forty = range(FIRST_VALUE, FIRST_VALUE + 4)
    assert train["item"].ravel().tolist() == [ten, twenty, forty, twenty, thirty, thirty]
    assert test["item"].ravel().tolist() == [twenty, UNSEEN, forty]  # by 3, 1 and 2
    assert test["year"][1] == MISSING  # nothing is known of item 20001
    assert test["genres"][1].tolist() == [ABSENT] * 3
    assert train["occupation"].ravel().tolist()[2] == MISSING  # user 3 doesn't tell
    assert (train["genres"][3] != ABSENT).tolist() == [True, False, False]
    assert dataset.table_rows[FEATURES.index("item")] == FIRST_VALUE + 4
    for name, split in dataset.splits.items():
        check_ids(split, dataset.table_rows, dataset.bag_lengths, name)


def test_a_split_that_a_file_gives(small, tmp_path):
    """It counts the rows of the file; examples are in the order of time."""
    roles = ["test" if item == 20 else "train" for _, item, _, _ in RATINGS]
    roles[-1] = "validation"
    path = tmp_path / "split.txt"
    path.write_text("\n".join(roles))
    split = f"rows={path}"
    found = load_movielens(small, split=split, features=["user", "item"]).dataset
    by_time = sorted(zip(RATINGS, roles, strict=True), key=lambda row: row[0][3])
    for name, rows in found.splits.items():
        stars = [rating[2] for rating, role in by_time if role == name]
        assert rows.labels.tolist() == [float(star >= 4) for star in stars]
    assert set(np.asarray(found.test.days[0].ids)[:, 1]) == {UNSEEN}  # item 20 tests only
    moved = path.rename(tmp_path / "moved.txt")
    same = load_movielens(small, split=f"rows={moved}", features=["user", "item"]).dataset
    assert same.fingerprint == found.fingerprint
    moved.write_text("\n".join(reversed(roles)))
    other = load_movielens(small, split=f"rows={moved}", features=["user", "item"]).dataset
    assert other.fingerprint != found.fingerprint
    moved.write_text("train\n")
    with pytest.raises(UserError, match="the split of 1 ratings, but there are 12; give one each"):
        load_movielens(small, split=f"rows={moved}")
    with pytest.raises(UserError, match="split: expected rows=FILE with a file that is there"):
        load_movielens(small, split="rows=none")


def test_choices_that_a_file_gives(large, tmp_path):
    given = {"train": range(30, 800), "validation": range(10), "test": range(10, 30)}
    np.savez(tmp_path / "split.npz", **given)  # pyright: ignore[reportArgumentType]
    options = {"features": ["user", "item"], "candidates": 2}
    found = load_ranking(large, split=f"rows={tmp_path / 'split.npz'}", **options)
    data = found.movielens.dataset
    sizes = {name: int(split.labels.sum()) for name, split in data.splits.items()}
    assert sizes == {"train": 770, "validation": 10, "test": 20}
    assert len(data.test) == 40
    assert data.fingerprint != load_ranking(large, **options).movielens.dataset.fingerprint


def test_labels_are_stars_from_the_threshold_on(small):
    by_time = sorted(RATINGS, key=lambda row: row[3])
    for threshold in (4.0, 2.5):
        dataset = load_movielens(small, split="time", threshold=threshold).dataset
        found = np.concatenate([split.labels for split in dataset.splits.values()])
        assert found.tolist() == [float(stars >= threshold) for _, _, stars, _ in by_time]
    assert dataset.train.dense_features == 0


def test_age_groups_are_those_of_1m(tmp_path):
    write_1m(tmp_path)
    ages = {1: (17, 18), 2: (24, 25), 3: (18, 24)}
    seen = []
    for turn in range(2):
        lines = [f"{user}::F::{pair[turn]}::x::1\n" for user, pair in ages.items()]
        (tmp_path / "users.dat").write_text("".join(lines))
        ids = columns(load_movielens(tmp_path, "leave_one_out"), "train")
        users = ids["user"].ravel()
        seen.append({int(u): int(ids["age_group"][users == u][0, 0]) for u in np.unique(users)})
    user_1, user_2, user_3 = FIRST_VALUE, FIRST_VALUE + 1, FIRST_VALUE + 2
    assert seen[0][user_2] == seen[0][user_3] != seen[0][user_1]  # 24 and 18, but 17
    assert seen[1][user_1] == seen[1][user_3] != seen[1][user_2]  # 18 and 24, but 25


def test_a_format_decides_nothing_but_what_is_known(tmp_path):
    found = []
    for write in (write_1m, write_csv, write_recbole):
        directory = tmp_path / write.__name__
        directory.mkdir()
        write(directory)
        found.append(load_movielens(directory, history=2))
    users = ("gender", "age_group", "occupation", "zip")
    assert found[1].features == tuple(f for f in found[0].features if f not in users)
    for name, ids in columns(found[1], "train").items():
        np.testing.assert_array_equal(ids, columns(found[0], "train")[name])
    for name, ids in columns(found[2], "train").items():
        np.testing.assert_array_equal(ids, columns(found[0], "train")[name])


def test_features_can_be_chosen(small):
    movielens = load_movielens(small, features=("genres", "age", "item", "user"))
    assert movielens.features == ("user", "age", "item", "genres")
    with pytest.raises(UserError, match=r"features user, gender.*has, got title"):
        load_movielens(small, features=("user", "title"))
    with pytest.raises(UserError, match="got none"):
        load_movielens(small, features=())
    with pytest.raises(UserError, match=r"history: .*item, which is missing"):
        load_movielens(small, features=("user",), history=2)


@pytest.mark.parametrize("split", ["random", "time", "leave_one_out"])
def test_histories_hold_training_likes_from_before(large, split):
    movielens = load_movielens(large, split=split, seed=3, features=("user", "item"), history=5)
    assert movielens.tables == ("user", "item", "item")
    assert movielens.dataset.table_rows[1] == movielens.dataset.table_rows[2]
    rows = pl.read_csv(large / "ratings.csv").sort("timestamp", maintain_order=True).rows()
    parts = split_rows(np.array([row[0] for row in rows]), split, 3)
    train_ids = columns(movielens, "train")["item"].ravel()
    id_of = {rows[row][1]: id_ for row, id_ in zip(parts.train, train_ids, strict=True)}
    some = False
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        for row, bag in zip(part, columns(movielens, name)["history"].tolist(), strict=True):
            user, _, _, time = rows[row]
            liked = [
                (when, -place, item)
                for place, (who, item, stars, when) in enumerate(rows[i] for i in parts.train)
                if who == user and stars >= 4 and when < time
            ]
            ordered = sorted(liked, key=lambda like: (like[0], -like[1]), reverse=True)
            expected = [id_of[item] for _, _, item in ordered][:5]
            assert bag == expected + [ABSENT] * (5 - len(expected))
            some |= len(expected) == 5
    assert some


def test_the_same_seed_gives_the_same_data_set(large):
    first, again, other = (load_movielens(large, seed=seed).dataset for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test.days[0].ids, again.test.days[0].ids)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.fingerprint != load_movielens(large, seed=0, history=3).dataset.fingerprint
    assert not np.array_equal(first.test.days[0].ids, other.test.days[0].ids)


# -- Ranking ---------------------------------------------------------------------------


def rated_by_user(directory):
    frame = pl.read_csv(directory / "ratings.csv").sort("timestamp", maintain_order=True)
    return {
        user[0]: own["movieId"].to_list()
        for user, own in frame.group_by("userId", maintain_order=True)
    }


def raw(movielens, directory):
    """The users and items that ids stand for, by what the vocabulary promises: frequency."""
    rated = rated_by_user(directory)
    train = [(user, item) for user, items in rated.items() for item in items[:-2]]
    tables = []
    for place in (0, 1):
        values, counts = np.unique([pair[place] for pair in train], return_counts=True)
        order = np.lexsort((values, -counts))
        tables.append(dict(enumerate(values[order].tolist(), FIRST_VALUE)))
    return tables


def test_the_last_rating_is_found_among_items_that_are_not_rated(large):
    ranking = load_ranking(large, features=("user", "item"), history=2, candidates=31)
    users, items = raw(ranking.movielens, large)
    rated = rated_by_user(large)
    for name, place in (("validation", -2), ("test", -1)):
        ids = columns(ranking.movielens, name)
        labels = getattr(ranking.movielens.dataset, name).labels.reshape(-1, ranking.candidates)
        assert labels.sum() == len(labels) == 20
        assert (labels[:, 0] == 1).all()
        histories = ids["history"].reshape(20, 31, 2)
        assert (histories == histories[:, :1]).all()
        found = set()
        pairs = zip(ids["user"].reshape(20, 31), ids["item"].reshape(20, 31), strict=True)
        for own, candidates in pairs:
            (user,) = {users[i] for i in own.tolist()}
            found.add(user)
            chosen, *others = (items.get(i) for i in candidates.tolist())
            assert chosen in (rated[user][place], None)
            assert not set(others) & set(rated[user])
            known = [item for item in others if item is not None]
            assert len(set(known)) == len(known)
        assert found == set(rated)


def test_training_has_negatives_of_its_own_in_each_epoch(large):
    ranking = load_ranking(large, seed=5, features=("user", "item"), negatives=3, candidates=9)
    users, items = raw(ranking.movielens, large)
    rated = rated_by_user(large)
    epochs = [ranking.train(epoch).days[0] for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(epochs[0].ids, ranking.movielens.dataset.train.days[0].ids)
    np.testing.assert_array_equal(epochs[0].ids, epochs[1].ids)
    assert not np.array_equal(epochs[0].ids, epochs[2].ids)
    held_out = 0
    for examples in epochs[1:]:
        assert len(examples) == 4 * (800 - 2 * 20)
        for (user_id, item_id), label in zip(
            np.asarray(examples.ids).tolist(), examples.labels, strict=True
        ):
            user, item = users[user_id], items.get(item_id)
            assert label == (item in rated[user][:-2])
            held_out += label == 0 and item in rated[user][-2:]
    # A model that is never told that what it shall find is wrong could find it by that.
    assert held_out > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"negatives": -1}, "negatives: expected at least 0, got -1"),
        ({"candidates": 1}, "candidates: expected at least 2, got 1"),
        ({"candidates": 91}, "expected 90 items that a user hasn't rated"),
        ({"history": -1}, "history: expected a number of items"),
    ],
)
def test_arguments_out_of_range_are_named(large, options, message):
    with pytest.raises(UserError, match=message):
        load_ranking(large, **options)

"""An index of keys finds what the map finds that they are of, also after changes."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.dynamic_ids import key_index
from dlrm_jax.dynamic_ids.id_map import IdMap
from dlrm_jax.dynamic_ids.key_index import KeyIndex
from dlrm_jax.dynamic_ids.keys import KeyChanges, Keys
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError


@pytest.fixture(params=[True, False], ids=["native", "plain"])
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(key_index.native, "available", lambda: False)


@pytest.mark.usefixtures("_engine")
def test_it_follows_a_map_by_changes():
    rng = np.random.default_rng(0)
    ids = IdMap(60, DynamicIds(defaults=3, max_age=5, evict_share=0.2), seed=7)
    all_keys = np.arange(200, dtype=np.uint64) * np.uint64(2**57 + 1)  # 0 is among them
    before = ids.keys()
    index = KeyIndex(before, 3, 7)
    freed = 0
    for now in range(60):
        translated = ids.translate(rng.choice(all_keys, 20), now)
        if now % 7 == 6:  # a batch that isn't trained on
            earlier = ids.keys([translated.undo])
            ids.undo(translated.undo)
            np.testing.assert_array_equal(ids.keys().keys, earlier.keys)
        if now % 4 == 3:
            changes = ids.keys().changes(before)
            freed += int(np.sum(~changes.live))
            before.apply(changes)
            for own, expected in zip(before, ids.keys(), strict=True):
                np.testing.assert_array_equal(own, expected)
            index.apply(changes)
            index.apply(changes)
            np.testing.assert_array_equal(index.find(all_keys), ids.find(all_keys))
            np.testing.assert_array_equal(index.live_keys, before.keys[before.live])
    assert freed, "rows that only lost their ids"


@pytest.mark.usefixtures("_engine")
def test_an_id_goes_from_one_row_to_another():
    keys = Keys(np.array([0, 11, 12, 13], np.uint64), np.array([False, True, True, True]))
    index = KeyIndex(keys, 1, 0)
    swapped = np.array([12, 11, 0], np.uint64), np.array([True, True, False])
    index.apply(KeyChanges(np.array([1, 2, 3], np.int32), *swapped))
    assert index.find(np.array([11, 12, 13], np.uint64)).tolist() == [2, 1, 0]


@pytest.mark.usefixtures("_engine")
def test_ids_that_changes_would_give_a_second_row():
    keys = Keys(np.array([0, 11, 12, 13], np.uint64), np.array([False, True, True, True]))
    index = KeyIndex(keys, 1, 0)

    def found(rows: list[int], keys: list[int], live: list[bool]) -> list[int]:
        given = np.array(rows, np.int32), np.array(keys, np.uint64), np.array(live)
        return index.in_other_rows(KeyChanges(*given)).tolist()

    assert found([1, 2], [13, 14], [True, True]) == [13]
    assert found([1, 2], [12, 11], [True, True]) == []
    assert found([1, 3], [13, 0], [True, False]) == []
    assert found([3], [0], [False]) == []


@pytest.mark.parametrize(
    ("keys", "live", "message"),
    [
        ([0, 5, 5], [False, True, True], "rows 1 and 2 both belong to id 5"),
        ([5, 6, 0], [True, True, False], "one of the 1 default rows belongs to an id"),
        ([0, 6, 7], [False, True, False], "row 2 is free and has a key"),
        ([0], [False], "expected an integer from 2 to"),
    ],
)
def test_keys_that_contradict_themselves(keys: list[int], live: list[bool], message: str):
    with pytest.raises(UserError, match=message):
        KeyIndex(Keys(np.array(keys, np.uint64), np.array(live)), 1, 0)

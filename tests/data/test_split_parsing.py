"""Rules and files that say a split, read without a log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_jax.data.given_split import read_split
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.row_split import Place, RowSplit
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.split_rule import parse_rule
from dlrm_jax.errors import UserError


def test_other_values_of_a_chunk_do_not_move_a_user():
    def splits(values, seed=0) -> list[int]:
        split = RowSplit(parse_rule("user=u:0.3,0.3"), seed)
        return split(pl.DataFrame({"u": values}), Place(Path("x"), 0, 1)).to_list()

    numbers = [*range(20), 2**63]
    expected = splits(pl.Series(numbers, dtype=pl.UInt64))
    assert set(expected) == {0, 1, 2}
    floats = [float(x) for x in numbers]
    others = [0.5, float("inf"), float("nan"), None]
    assert splits([*floats, *others])[:21] == expected == splits(list(map(str, numbers)))
    assert splits([f"{x}.0" for x in numbers]) == expected
    for seed in range(10):
        assert splits([-0.0], seed) == splits(["-0.0"], seed) == splits([0], seed)
    assert splits([*floats, *others])[-2:] == [0, 0]  # missing ones train
    assert splits([1e300 * i for i in range(1, 20)]).count(0) < 19  # large ones don't all


def test_files_that_give_no_split(tmp_path):
    text, numbers = tmp_path / "a.txt", tmp_path / "a.npz"
    for content, message in [
        ("train\ntest\nvalid\n", "a.txt, line 3: expected train, validation or test, .* 'valid'"),
        ("test\n", "expected rows for training, got none"),
        ("", "expected rows for training, got none"),
    ]:
        text.write_text(content)
        with pytest.raises(UserError, match=message):
            read_split(text)
    for arrays, message in [
        ({"train": [0, 1]}, "expected the arrays train, validation and test, got train"),
        ({"train": [0, 1], "validation": [1], "test": []}, "from 0 to 2 .*, got 1 twice"),
        ({"train": [0, 3], "validation": [1], "test": []}, "from 0 to 2 .*, got 3"),
        ({"train": [0.5], "validation": [], "test": []}, "train: expected row numbers, got float"),
    ]:
        np.savez(numbers, **arrays)  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match=message):
            read_split(numbers)
    damaged, empty, single = (tmp_path / f"{name}.npz" for name in ("damaged", "empty", "single"))
    np.savez_compressed(damaged, train=np.arange(5000), validation=[], test=[])
    content = damaged.read_bytes()
    damaged.write_bytes(content[:99] + b"\xff" * 60 + content[159:])
    empty.touch()
    with single.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(UserError, match=rf"^{single}: expected the arrays .*, got a single one"):
        read_split(single)
    numbers.write_bytes(b"PK")
    for path in (numbers, damaged, empty, tmp_path / "none"):
        with pytest.raises(UserError, match=f"cannot read the split {path}"):
            read_split(path)


def test_what_is_no_rule():
    for rule, message in [
        ("weekday", "expected one of time, user=COLUMN, fraction, days, .* got 'weekday'"),
        ("user", "expected user=COLUMN, got 'user'"),
        ("days=3", "expected days, got 'days=3'"),
        ("days=", "expected days, got 'days='"),
        ("user=:0.1,0.1", "expected user=COLUMN, got 'user=:0.1,0.1'"),
        ("days:0.1,0.1", "days has no sizes"),
        ("fraction:0.6,0.5", "together above 0 and below 1, such as fraction:0.1,0.1, got"),
        ("fraction:0,0", "none holds nothing out"),
        ("time:0.1", "such as time:0.1,0.1, or days, such as time:7d,1d, got 'time:0.1'"),
        ("time:7,1", "or days, such as time:7d,1d"),
        ("fraction:7d,1d", "together above 0"),
        ("column=*", r"^split: '\*' is a pattern to Polars"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_rule(rule)
    assert str(parse_rule("user=a:b")) == "user=a:b:0.1,0.1"
    assert str(parse_rule("fraction:0,0.1234567")) == "fraction:0,0.1234567"
    assert str(parse_rule("time:7d,1d")) == "time:7d,1d"


def test_options_that_do_not_fit_are_refused():
    bags = Schema("y", ("item", "seen"), bag_lengths={"seen": 3})
    for options, message in [
        ({"compatible": "reference", "split": "fraction"}, "ids compatible with reference"),
        ({"split": "column=C1"}, "Criteo's data have the columns"),
        ({"split": "user=user"}, "Criteo's data have the columns"),
        ({"schema": bags, "split": "user=seen"}, "seen holds lists"),
        ({"split": "rows=x", "on_bad_line": "skip"}, "none may be left out"),
        ({"seed": 10**64}, "seed: expected at least 0, of 64 digits at most, got 1000"),
    ]:
        with pytest.raises(UserError, match=message):
            Options(**options)

"""The search in JAX: what NumPy finds, to the last bit, whatever the shapes, filters and ties."""

from __future__ import annotations

import inspect
from datetime import date
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_index import FILTERS, LANGUAGES, draw_attributes, draw_vectors, search_both

from dlrm_jax.errors import UserError
from dlrm_jax.retrieval.index import bloom, jax_search
from dlrm_jax.retrieval.index.attributes import Attribute, Attributes
from dlrm_jax.retrieval.index.item_index import ItemIndex
from dlrm_jax.retrieval.index.vectors import BLOCK, GAP, in_cells, pack, quantize


@pytest.mark.parametrize(
    ("count", "k", "cells", "rows"),
    [(70, 9, 1, 16), (70, 80, 4, 1000), (64, 20, 3, 16), (1, 1, 1, 9)],
)
def test_it_finds_what_numpy_finds(
    count: int, k: int, cells: int, rows: int, monkeypatch: pytest.MonkeyPatch
):
    """In one block of items or in several, the last of which may be filled up."""
    monkeypatch.setattr(jax_search, "_ROWS", rows)
    found, wanted = search_both(0, count, 5, k, cells, [*FILTERS, *FILTERS[1:]])
    np.testing.assert_array_equal(found.items, wanted[0])
    np.testing.assert_array_equal(found.scores, wanted[1])


def test_cells_are_read_nearest_first():
    """Of well-separated clusters, one cell is enough, and others aren't looked at."""
    rng = np.random.default_rng(0)
    centers = np.eye(4, dtype=np.float32)
    own = np.arange(80) % 4
    vectors = (centers[own] + rng.normal(0, 0.05, (80, 4))).astype(np.float32)
    index = ItemIndex.build(vectors, kind="ivf", cells=4, probes=1)
    assert index.cells == 4
    found = index.search(centers, 20).items
    assert [set(own[row]) for row in found] == [{0}, {1}, {2}, {3}]
    np.testing.assert_array_equal(found, index.search(centers, 20, probes=4).items)
    assert (index.search(centers, 21).items[:, 20] == -1).all()


def test_places_are_whole_blocks_of_cells():
    cells = np.array([2, 0, 2, 0, 3] * 20, np.int32)
    places, starts = in_cells(cells, 5)
    assert starts.tolist() == [0, 2, 2, 4, 5, 5]
    for cell in range(5):
        own = places[starts[cell] * BLOCK : starts[cell + 1] * BLOCK]
        assert own[own != GAP].tolist() == np.flatnonzero(cells == cell).tolist()


def test_blocks_have_four_numbers_of_an_item_after_the_other():
    rows = np.arange(2 * BLOCK * 8, dtype=np.int64).astype(np.int8).reshape(2 * BLOCK, 8)
    assert np.array_equal(pack(rows)[1, 1, 5], rows[BLOCK + 5, 4:])


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9))
def test_integers_are_within_half_a_step(numbers: list[float]):
    row = np.array([numbers], np.float32)
    integers, scale = quantize(row)
    assert np.abs(integers.astype(np.int32)).max() <= 127
    if np.abs(row).max() > 1e-30:
        assert (np.abs(integers * scale[:, None] - row) <= scale * 0.501).all()


def test_bloom_filters_miss_nothing_and_pass_few_others():
    rng = np.random.default_rng(0)
    ids = rng.integers(-1, 1000, (640, 4)).astype(np.int32)
    columns, bits = [(0, 1), (1, 4)], bloom.default_bits(4)
    words = bloom.make_bits(ids, columns, bits)
    wrong = total = 0
    for attribute, (begin, end) in enumerate(columns):
        for value in range(0, 1000, 10):
            (at,) = bloom.positions(attribute, np.array([value]), bits)
            passing = np.bitwise_and.reduce(words[:, at], axis=1)
            seen = (passing[:, None] >> np.arange(BLOCK, dtype=np.uint32) & 1).astype(bool).ravel()
            has = (ids[:, begin:end] == value).any(axis=1)
            assert seen[has].all()
            wrong, total = wrong + np.sum(seen & ~has), total + np.sum(~has)
    assert wrong / total < 0.01


@pytest.mark.parametrize(
    ("known", "wanted", "bad", "expected"),
    [
        ([3, 4], np.int64(4), 4.0, "an integer, got 4.0"),
        ([1.5, 4.0], 4, True, "a number, got True"),
        ([False, True], True, 1, "True or False, got 1"),
        ([date(2020, 1, 1), date(2020, 1, 2)], date(2020, 1, 2), 2, "a value of type Date, got 2"),
        (["3", "4"], np.array(["4"])[0], 4, "text, got 4"),
    ],
)
def test_values_of_any_type_are_filters(known: list[Any], wanted: Any, bad: Any, expected: str):
    attribute = Attribute("x", (0, 1), pl.DataFrame({"value": known, "id": [7, 8]}))
    assert attribute.ids_of([wanted]).tolist() == [8]
    with pytest.raises(UserError, match=f"filters: x: expected {expected}"):
        attribute.ids_of([bad])


def test_bad_questions():
    rng = np.random.default_rng(0)
    attributes = draw_attributes(rng, 5)
    index = ItemIndex.build(draw_vectors(rng, 5, 3), attributes)
    query = np.ones((1, 3), np.float32)
    cases: list[tuple[Any, Any, Any, str]] = [
        (query[:, :2], 1, None, r"queries: expected vectors of shape \[n, 3\], got .*1, 2"),
        (query * np.nan, 1, None, "queries: expected finite numbers of float32, got nan in row 0"),
        (np.full((1, 3), 1e300), 1, None, r"of float32, got 1e\+300 in row 0, column 0"),
        *(
            (query, k, None, f"^k: expected an integer from 1 on, got {k!r}$")
            for k in (2.5, True, 0, -1, "3", None)
        ),
        (query, 1, {"color": 1}, "no attribute 'color'; they have language, topics"),
        (query, 1, {"language": []}, "language: expected at least one value"),
        (query, 1, {"language": 3}, "language: expected text, got 3"),
        (query, 1, {"topics": [100, "a"]}, "topics: expected an integer, got 'a'"),
        (query, 1, [None, None], "filters: expected one for each of 1 queries, got 2"),
        (query, 1, 5, "filters: expected attributes by name, or a list with those of each query,"),
    ]
    for queries, k, filters, message in cases:
        with pytest.raises(UserError, match=message):
            inspect.unwrap(ItemIndex.search)(index, queries, k, filters)  # without checks of types
    with pytest.raises(UserError, match="probes: expected an integer from 1 on, got 0"):
        index.search(query, 1, probes=0)
    with pytest.raises(UserError, match="threads: expected an integer from 1 on, got 0"):
        index.search(query, 1, threads=0)
    for k in (65_537, 2**40, 2**63, 2**64):
        with pytest.raises(UserError, match="k: expected at most 65,536 of an index of 5 items"):
            index.search(query, k)
    found = inspect.unwrap(ItemIndex.search)(index, query, np.int64(2)).items  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(found, index.search(query, 2).items)
    with pytest.raises(UserError, match="vectors: expected one or more"):
        ItemIndex.build(np.empty((0, 3), np.float32))
    with pytest.raises(UserError, match="cells: expected at most the 2 items, got 3"):
        ItemIndex.build(np.ones((2, 3), np.float32), kind="ivf", cells=3)
    numbers: list[tuple[dict[str, Any], str]] = [
        ({"cells": -1}, "cells: expected an integer from 0 on, got -1"),
        ({"cells": 1.5}, "cells: expected an integer from 0 on, got 1.5"),
        ({"probes": 0}, "probes: expected an integer from 1 on, got 0"),
        ({"kind": "hnsw"}, "kind: expected flat or ivf, got 'hnsw'"),
    ]
    unchecked = inspect.unwrap(ItemIndex.build.__func__)  # pyright: ignore[reportFunctionMemberAccess]
    for changed, message in numbers:
        with pytest.raises(UserError, match=message):
            unchecked(ItemIndex, np.ones((2, 3), np.float32), **{"kind": "ivf"} | changed)
    bare = ItemIndex.build(np.ones((2, 3), np.float32), Attributes(np.empty((2, 0), np.int32), ()))
    with pytest.raises(UserError, match="they have none"):
        bare.search(query, 1, {"language": LANGUAGES[0]})

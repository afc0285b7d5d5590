"""The native search of an index: what NumPy finds, whatever the shapes, filters, ties, threads."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_index import FILTERS, draw_vectors, search_both

from dlrm_jax.native import library
from dlrm_jax.retrieval.index.item_index import ItemIndex


def check(seed: int, shape: tuple[int, int, int, int], filters: Any) -> None:
    found, wanted = search_both(seed, *shape, filters, threads=1)
    np.testing.assert_array_equal(found.items, wanted[0])
    np.testing.assert_array_equal(found.scores, wanted[1])


@settings(max_examples=40)
@given(
    count=st.integers(1, 150),
    dim=st.integers(1, 9),
    k=st.integers(1, 160),
    cells=st.integers(1, 5),
    filters=st.lists(st.sampled_from(FILTERS), max_size=11),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_finds_what_numpy_finds(
    count: int, dim: int, k: int, cells: int, filters: list[Any], seed: int
):
    check(seed, (count, dim, k, cells), filters)


@pytest.fixture(scope="module")
def large() -> tuple[ItemIndex, np.ndarray]:
    """So many items that several threads search them."""
    rng = np.random.default_rng(0)
    vectors = np.concatenate([draw_vectors(rng, 30_000, 32), np.ones((30_000, 32), np.float32)])
    of_items = rng.integers(0, 7, len(vectors)).astype(np.int32)
    directions = rng.normal(size=(7, 32)).astype(np.float32)
    index = ItemIndex.in_cells(vectors, None, directions, of_items, probes=3)
    return index, rng.normal(size=(21, 32)).astype(np.float32)


@pytest.mark.parametrize(("queries", "probes"), [(1, 7), (21, 7), (21, 3)])
def test_threads_change_nothing(large: tuple[ItemIndex, np.ndarray], queries: int, probes: int):
    index, vectors = large
    wanted = index.search(vectors[:queries], 100, probes=probes, threads=1)
    for threads in (2, 5, 2**63, 2**64):  # the last two are no number of 64 bits
        found = index.search(vectors[:queries], 100, probes=probes, threads=threads)
        np.testing.assert_array_equal(found.items, wanted.items)
        np.testing.assert_array_equal(found.scores, wanted.scores)


def test_cells_are_those_of_jax(large: tuple[ItemIndex, np.ndarray]):
    """And the items, of a number that is no multiple of a block of JAX's search."""
    index, vectors = large
    found = index.search(vectors, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlrm_jax.retrieval.index.item_index.available", lambda: False)
        wanted = index.search(vectors, 5)
    np.testing.assert_array_equal(found.items, wanted.items)
    np.testing.assert_array_equal(found.scores, wanted.scores)


@pytest.mark.thorough
@pytest.mark.skipif(platform.machine() != "x86_64", reason="its instructions are named")
@pytest.mark.parametrize("instructions", ["-mavx2", "-msse2", "-mavx512f -mavx512bw -mavx512vnni"])
def test_other_instructions_find_the_same(
    instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = Path("/proc/cpuinfo").read_text()
    if any(
        x.removeprefix("-m").replace("vnni", "_vnni") not in flags for x in instructions.split()
    ):
        pytest.skip("this processor lacks them")
    source = Path(library.__file__).with_name("item_scan.cc")
    made = tmp_path / "scan.so"
    command = ["c++", "-std=c++17", "-O1", "-pthread", "-shared", "-fPIC", *instructions.split()]
    subprocess.run([*command, str(source), "-o", str(made)], check=True)
    monkeypatch.setattr(library, "functions", lambda: ctypes.CDLL(str(made)))
    for seed, dim in enumerate((3, 16, 33)):
        check(seed, (100, dim, 20, 3), [*FILTERS, *FILTERS])

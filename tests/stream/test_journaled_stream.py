"""A checkpoint and its journal are the state that was trained, bit for bit; so is what follows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journaled_job import CASES, SIZES, STEPS, assert_same, entries, train
from main_job import arrays
from stream_log import write_segments

from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.errors import UserError


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("journaled") / "segments"
    write_segments(directory, SIZES)
    return directory


@pytest.fixture(
    scope="module", params=["dynamic", pytest.param("hashed", marks=pytest.mark.thorough)]
)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def unbroken(case: str, segments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp(case)
    train(case, segments, workdir, journal_seconds=0.0)
    return workdir


def test_cut_and_resumed(case: str, segments: Path, unbroken: Path, tmp_path: Path):
    before = train(case, segments, tmp_path, cut="s001.parquet")
    assert before[-1] == "cut"
    count = len(entries(tmp_path))
    assert count > 4
    said = train(case, segments, tmp_path, cut="s002.parquet")
    assert f"resuming from step 1 and its journal to step {1 + count} in" in said[-2]
    assert len(entries(tmp_path)) > count, "the journal goes on"
    train(case, segments, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*.journal")), "the last checkpoint has all"
    assert (tmp_path / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()
    assert_same(tmp_path, unbroken, STEPS)


@pytest.mark.thorough
def test_on_another_mesh_it_is_the_same_state(case: str, segments: Path, tmp_path: Path):
    for name in ("same", "other"):
        train(case, segments, tmp_path / name, cut="s001.parquet")
    step = 1 + len(entries(tmp_path / "same"))
    # Nothing is trained: the state gets a checkpoint of its own.
    train(case, segments, tmp_path / "same", steps=step)
    train(case, segments, tmp_path / "other", mesh="2x4", steps=step)
    assert_same(tmp_path / "other", tmp_path / "same", step)


@pytest.mark.thorough
def test_entries_of_tables_with_other_numbers_of_rows_stay_where_they_are(
    segments: Path, tmp_path: Path
):
    """Rows of ids may be more when a run resumes, and then entries are of other rows."""
    train("dynamic", segments, tmp_path, cut="s002.parquet")
    count = len(entries(tmp_path))
    ids = ("item=25:evict_share=0.1", "user=15:admit_count=2")
    more = dataclasses.replace(CASES["dynamic"], dynamic_ids=ids)
    with pytest.raises(
        UserError, match=r"is of tables with other numbers .*: item \d+ before and 25"
    ):
        train("dynamic", segments, tmp_path, config=more)
    assert len(entries(tmp_path)) == count
    said = train("dynamic", segments, tmp_path, steps=1 + count)
    assert any(f"and its journal to step {1 + count} in" in line for line in said)
    train("dynamic", segments, tmp_path, config=more)
    assert arrays(tmp_path, STEPS)["/item/table"].shape == (25, 8)


def test_rows_that_arent_finite_are_not_written(
    segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train("hashed", segments, tmp_path, cut="s001.parquet")
    whole = [path.read_bytes() for path in entries(tmp_path)]
    read = EmbeddingCollection.read_row_state

    def read_infinite(*arguments: Any) -> Any:
        found = read(*arguments)
        for own in found.values():
            own["table"] += np.float32(np.inf)
        return found

    monkeypatch.setattr(EmbeddingCollection, "read_row_state", read_infinite)
    with pytest.raises(UserError, match=r"the rows of table .* aren't finite"):
        train("hashed", segments, tmp_path)
    assert [path.read_bytes() for path in entries(tmp_path)] == whole

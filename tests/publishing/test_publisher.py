"""A base and its deltas are, byte for byte, what a full export of the state is."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
from publishing_run import COMPOSED, DYNAMIC, SHARED, compacted, files_in, run_of
from saved_run import CONFIG

from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.config import Config
from dlrm_jax.publishing import delta_writer
from dlrm_jax.publishing.compaction import compact


@pytest.mark.parametrize(
    ("row_format", "mesh", "config"),
    [
        ("int4", "1x8", COMPOSED),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in (
                ("float32", "1x1", CONFIG),
                ("int8", "2x4", DYNAMIC),
                ("int8", "2x4", CONFIG),
                ("bfloat16", "1x1", SHARED),
                ("float32", "1x1", DYNAMIC),
            )
        ),
    ],
)
def test_base_and_deltas_are_a_full_export(
    row_format: RowFormat, mesh: str, config: Config, tmp_path: Path
):
    with run_of(tmp_path, row_format, mesh, config, share=1e9) as run:
        run.begin()
        for _ in range(4):
            run.publish()
            run.train(2)
        run.publisher.end(run.state)
        expected = files_in(run.exported(tmp_path / "expected", row_format))
    models = tmp_path / "models"
    assert sorted(x.name for x in models.iterdir()) == [
        "1", "1.deltas", "publishing.json", "publishing.lock",
    ]  # fmt: skip
    assert sorted(x.name for x in (models / "1.deltas").iterdir()) == [
        "000001", "000002", "000003", "000004",
    ]  # fmt: skip
    found = files_in(compacted(models))
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    before = files_in(models / "1")
    assert [name for name in found if name.startswith("tables") and found[name] != before[name]]


def test_frozen_tables_and_no_step_add_no_rows(tmp_path: Path):
    config = dataclasses.replace(CONFIG, frozen_tables=("C2",))
    with run_of(tmp_path, config=config, share=1e9) as run:
        run.begin()
        run.publish()
        run.publish()
        (delta,) = run.deltas()
        assert {name: len(numbers) for name, (numbers, _) in delta.rows.items()}.keys() == {
            "C1",
            "C3",
        }
        run.publisher.end(run.state)
        assert len(run.deltas()) == 1, "the last state is published already"


@pytest.mark.parametrize(
    ("is_later", "mesh", "config"),
    [
        pytest.param(False, "2x4", DYNAMIC, marks=pytest.mark.thorough),
        pytest.param(True, "1x1", DYNAMIC, marks=pytest.mark.thorough),
        pytest.param(False, "1x1", CONFIG, marks=pytest.mark.thorough),
        pytest.param(False, "2x4", CONFIG, marks=pytest.mark.thorough),
        pytest.param(True, "1x1", CONFIG, marks=pytest.mark.thorough),
    ],
)
def test_a_run_goes_on_from_before_or_after_what_is_published(
    is_later: bool, mesh: str, config: Config, tmp_path: Path
):
    """After a crash: the checkpoint is older or newer than the last publication."""
    with run_of(tmp_path, config=config, share=1e9) as run:
        run.begin()
        run.publish()
        run.train(2)
        before = run.arrays()
        run.train(1)
        run.publish()
        run.train(2)
        after = run.arrays()
    with run_of(tmp_path, mesh=mesh, config=config, share=1e9) as run:
        run.begin(after if is_later else before)
        assert run.said == [f"publish: goes on after step 5 in {tmp_path / 'models'}"]
        if not is_later:
            run.publish()  # step 4, which is before what is published
            assert len(run.deltas()) == 1
            run.train(1)
        run.publish()
        assert len(run.deltas()) == 2
        expected = files_in(run.exported(tmp_path / "expected"))
    assert files_in(compacted(tmp_path / "models")) == expected


def test_new_bases_while_deltas_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, may_end = threading.Event(), threading.Event()

    def slow(published: Any, last: int, writing: Any, done: Any) -> None:
        class Waiting:
            def __enter__(self) -> None:
                begun.set()
                may_end.wait()
                writing.__enter__()

            def __exit__(self, *error: object) -> None:
                writing.__exit__(*error)

        compact(published, last, Waiting(), done)

    monkeypatch.setattr(delta_writer, "compact", slow)
    models = tmp_path / "models"
    with run_of(tmp_path, "int8", deltas=2, share=1e9) as run:
        run.begin()
        for _ in range(3):
            run.publish()
        assert begun.wait(20)
        for _ in range(2):
            run.publish()
        assert [x.name for x in run.bases()] == ["1"]
        may_end.set()
        run.publisher._writer.compact_if_due(wait=True)
        assert run.deltas()
        assert [x.name for x in run.bases()] == ["1", "3"]
        assert [x.note.step for x in run.deltas()] == [4, 5]
        run.publish()
        run.publisher.end(run.state)
        assert [x.name for x in run.bases()] == ["3", "5"], "two are kept"
        assert not (models / "1.deltas").exists()
        assert [x.note.step for x in run.deltas()] == [6]
        expected = files_in(run.exported(tmp_path / "expected", "int8"))
    assert files_in(compacted(models)) == expected
    assert run.said == [run.said[0]], "of the first base"

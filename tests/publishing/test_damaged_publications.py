"""Publications that are damaged, and disks that are full."""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from full_disk import largest_file
from publishing_run import DYNAMIC, compacted, files_in, flip, run_of

from dlrm_jax.artifact.delta import write_delta
from dlrm_jax.dynamic_ids.keys import KeyChanges
from dlrm_jax.errors import DamagedDeltaError, UserError
from dlrm_jax.publishing.compaction import compact
from dlrm_jax.publishing.published import bases_in, newest


def test_a_full_disk_is_told_of_and_loses_no_row(tmp_path: Path):
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        with largest_file(1000):
            run.publish()
        assert "warning: publish: step 1 isn't published: cannot write " in run.said[-1]
        assert run.bases() == []
        run.publish()
        with largest_file(1000):
            run.publish()
        assert "step 3 isn't published: cannot write " in run.said[-1]
        assert run.deltas() == []
        run.publish()
        assert [x.note.step for x in run.deltas()] == [4]
        expected = files_in(run.exported(tmp_path / "expected"))
    assert files_in(compacted(tmp_path / "models")) == expected


@pytest.mark.parametrize(
    "damage",
    ["foreign", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("torn", "lost"))],
)
def test_a_damaged_chain_is_followed_by_a_new_base(damage: str, tmp_path: Path):
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        for _ in range(4):
            run.publish()
        state, deltas = run.arrays(), tmp_path / "models" / "1.deltas"
    if damage == "torn":
        path = deltas / "000002" / "rows.bytes"
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "lost":
        shutil.rmtree(deltas / "000002")
    else:
        shutil.rmtree(deltas / "000001")
        shutil.copytree(deltas / "000002", deltas / "000001")
    with run_of(tmp_path) as run:
        run.begin(state)
        assert "warning: publish: a new base follows: " in run.said[0]
        run.publish()
        assert [x.name for x in run.bases()] == ["1", "5"]
        assert files_in(run.bases()[-1]) == files_in(run.exported(tmp_path / "expected"))


def test_deltas_without_a_base_are_deleted(tmp_path: Path):
    models = tmp_path / "models"
    wanted = ["1", "1.deltas", "publishing.json", "publishing.lock"]
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        for _ in range(4):
            run.publish()
        published = newest(models)
        assert published
        assert len(list(published.chain.rest())) == 3
        (models / "1.deltas" / "000003" / "rows.bytes").unlink()
        with pytest.raises(UserError, match=r"cannot write .*000002"):
            compact(published, 1, threading.Lock(), lambda _: None)
        assert sorted(x.name for x in models.iterdir()) == wanted, "of a new base that failed"
    shutil.copytree(models / "1.deltas", models / "2.deltas")  # of one that was killed
    (models / "notes.deltas").mkdir()
    with run_of(tmp_path):
        assert sorted(x.name for x in models.iterdir()) == [
            *wanted[:2], "notes.deltas", *wanted[2:],
        ]  # fmt: skip


def test_a_damaged_base_isnt_gone_on_with(tmp_path: Path):
    """Not all of its files are compared with the state: layers come with each delta."""
    with run_of(tmp_path) as run:
        run.begin()
        run.publish()
        state = run.arrays()
    flip(tmp_path / "models" / "1" / "golden" / "ids.npy")
    with run_of(tmp_path) as run:
        run.begin(state)
        (line,) = run.said
        assert "a new base follows: " in line
        assert "golden/ids.npy: expected the checksum" in line


@pytest.mark.parametrize(
    ("file", "is_lost"),
    [
        pytest.param("tables/C2.rows", False, marks=pytest.mark.thorough),
        pytest.param("golden/ids.npy", False, marks=pytest.mark.thorough),
        pytest.param("tables/C2.rows", True, marks=pytest.mark.thorough),
        ("manifest.json", True),
    ],
)
def test_a_damaged_base_isnt_made_a_new_one(
    file: str, is_lost: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with run_of(tmp_path, deltas=2, share=1e9) as run:
        run.begin()
        run.publish()
        path = tmp_path / "models" / "1" / file
        path.unlink() if is_lost else flip(path)
        for _ in range(2):
            run.publish()
        run.publisher.end(run.state)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: publish: a new base of the whole state follows: ")
        reason = "it is missing" if is_lost else "expected the checksum"
        assert f"1 is damaged: {file}: {reason}" in line
        assert [x.name for x in run.bases()][-1] == "3"
        assert files_in(run.bases()[-1]) == files_in(run.exported(tmp_path / "expected"))


def test_a_base_that_is_deleted_is_followed_by_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with run_of(tmp_path, deltas=2, share=1e9) as run:
        run.begin()
        run.publish()
        shutil.rmtree(tmp_path / "models" / "1")
        for _ in range(2):
            run.publish()
        run.publisher.end(run.state)
        assert "1 is damaged: " in capsys.readouterr().err
        assert [x.name for x in run.bases()] == ["3"]
        assert files_in(run.bases()[-1]) == files_in(run.exported(tmp_path / "expected"))


def test_a_disk_that_stays_full_is_told_of_once_and_at_the_end(tmp_path: Path):
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        run.publish()
        with largest_file(1000):
            for _ in range(3):
                run.publish()
            run.publisher.end(run.state)
        assert len(run.said) == 2, "the base, and one warning"
        state = run.arrays()
    assert len(run.said) == 3
    assert "the last state, of step 4, isn't published: cannot write " in run.said[-1]
    assert f"export --run={tmp_path / 'run'} --output=NAME" in run.said[-1]
    with run_of(tmp_path, share=1e9) as run:  # the same command, which has no step left
        run.begin(state)
        run.publisher.end(run.state)
        assert [x.note.step for x in run.deltas()] == [4]
    assert run.said == [f"publish: goes on after step 1 in {tmp_path / 'models'}"]


def test_a_run_that_is_stopped_says_that_its_last_state_isnt_published(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), run_of(tmp_path) as run:  # noqa: PT012
        run.begin()
        run.publish()
        run.train(1)
        raise KeyboardInterrupt
    assert "of step 2, isn't published: the run has ended before; the same" in run.said[-1]


@pytest.mark.thorough
def test_an_id_that_a_delta_gives_a_second_row(tmp_path: Path):
    """Each file is as it was written; a base of them would be an artifact that can't be loaded."""
    models = tmp_path / "models"
    with run_of(tmp_path, config=DYNAMIC, share=1e9) as run:
        run.begin()
        run.publish()
        run.publish()
        state, (base,), (delta,) = run.arrays(), run.bases(), run.deltas()
        live = np.flatnonzero(run.maps_now().keys()["C2"].live)
        twice = run.maps_now().keys()["C2"].keys[live[:1]]
    bad = KeyChanges(live[1:2].astype(np.int32), twice, np.array([True]))
    note = dataclasses.replace(delta.note, number=2, step=3, before=delta.content)
    (directory := models / f"{base.name}.deltas" / "000002").mkdir()
    write_delta(directory, note, {}, delta.layers, {"C2": bad})

    damaged = rf"1\.deltas/000002 is damaged: keys\.records: .* id {twice[0]} keeps another, too"
    with pytest.raises(DamagedDeltaError, match=damaged):
        compacted(models)
    assert bases_in(models) == [base]
    with run_of(tmp_path, config=DYNAMIC) as run:
        run.begin(state)
        assert re.search(f"a new base follows: .*{damaged}", run.said[0])

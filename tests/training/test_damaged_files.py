"""Files of a run that something has damaged are named in one message, or read as far as they go."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.metadata import FORMAT, read_metadata
from dlrm_jax.training.record import Record
from dlrm_jax.training.stopping import Improvement
from dlrm_jax.workspaces import workspace

WHOLE = {
    "format": FORMAT, "step": 3, "identity": {}, "validation": None, "params": {}, "arrays": {}
}  # fmt: skip


def read(directory: Path, content: Any) -> dict[str, Any]:
    return read_text(directory, json.dumps(content).encode())


def read_text(directory: Path, content: bytes) -> dict[str, Any]:
    checkpoint = directory / "00000003"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "metadata.json").write_bytes(content)
    return read_metadata(checkpoint)


@pytest.mark.parametrize("found", [1, FORMAT + 1, "x", None, [2], {}])
def test_other_formats_of_checkpoints(tmp_path: Path, found: Any):
    with pytest.raises(UserError, match="this program reads 2 and 3"):
        read(tmp_path, WHOLE | {"format": found})


@pytest.mark.parametrize("name", ["step", "identity", "validation", "params", "arrays"])
def test_metadata_without_a_part(tmp_path: Path, name: str):
    assert read(tmp_path, WHOLE) == WHOLE
    with pytest.raises(
        DamagedCheckpointError, match=f"is damaged: its metadata.json has no {name}"
    ):
        read(tmp_path, {key: value for key, value in WHOLE.items() if key != name})
    with pytest.raises(DamagedCheckpointError, match=f"has no {name}"):
        read(tmp_path, WHOLE | {name: "x"})


@pytest.mark.parametrize("stream", [5, None, {"schema": [1]}])
def test_a_part_of_a_stream_that_is_none(tmp_path: Path, stream: object):
    with pytest.raises(DamagedCheckpointError, match=r"00000003 is damaged: .* has no stream"):
        read(tmp_path, WHOLE | {"stream": stream})


@pytest.mark.parametrize("shape", [[[7, 4]], [-1], [True], [2.0], [2**24, 2**24], "7", None])
def test_shapes_that_no_array_has(tmp_path: Path, shape: object):
    with pytest.raises(DamagedCheckpointError, match="has no arrays"):
        read(tmp_path, WHOLE | {"arrays": {"C1/table": {"item": "0", "shape": shape}}})


def test_the_item_of_an_array_is_text(tmp_path: Path):
    with pytest.raises(DamagedCheckpointError, match="has no arrays"):
        read(tmp_path, WHOLE | {"arrays": {"C1/table": {"item": 5, "shape": [3]}}})


@pytest.mark.parametrize(
    "noted", [5, {"source": "x", "names": 5}, {"names": []}, {"source": "x", "names": [1]}]
)
def test_a_warm_start_that_is_no_note_of_one(tmp_path: Path, noted: object):
    for good in (None, {"source": "x", "names": ["C1"]}):
        assert read(tmp_path, WHOLE | {"warm_start": good})["warm_start"] == good
    with pytest.raises(DamagedCheckpointError, match="has no warm_start"):
        read(tmp_path, WHOLE | {"warm_start": noted})


@pytest.mark.parametrize(
    "wrong", [{"more": 1}, {"best": "x"}, {"cuts": -1}, {"cuts": 1e9}, {"metric": 3}, {"factor": 2}]
)
def test_what_was_noted_of_evaluations(tmp_path: Path, wrong: Any):
    whole = dataclasses.asdict(Improvement("auc", 0.5, 1, 1, 0))
    assert read(tmp_path, WHOLE | {"improvement": whole})["improvement"] == whole
    for changed in (whole | wrong, wrong, "x"):
        with pytest.raises(DamagedCheckpointError, match="has no improvement"):
            read(tmp_path, WHOLE | {"improvement": changed})


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[3]", b'{"format": 3', b"[" * 100_000])
def test_metadata_that_cannot_be_read(tmp_path: Path, content: bytes):
    with pytest.raises(DamagedCheckpointError, match=r"its metadata\.json can't be read"):
        read_text(tmp_path, content)


def test_files_among_checkpoints_are_left_alone(tmp_path: Path):
    mine = ["notes.writing", "00000001.deleting", "00000002.writing/notes", ".00000004.dlrm_jax/x"]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    for name in ("00000003.writing/dense.orbax-checkpoint-tmp", "00000003.deleting/tables/0"):
        (tmp_path / name).mkdir(parents=True)  # as earlier versions left them
    with workspace(tmp_path / "00000005") as directory:
        shutil.copytree(directory, tmp_path / ".00000006.dlrm_jax")  # as a killed process leaves it
    Checkpoints(tmp_path, {}).prepare()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(mine)
    assert len(list(tmp_path.iterdir())) == len(mine)


def test_metrics_that_are_not_text(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "split": "train"}\n\xff\xfe\n')
    with Record(path, resumed_from=1):
        assert path.read_text() == '{"step": 1, "split": "train"}\n'

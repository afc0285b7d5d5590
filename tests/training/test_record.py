from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from event_files import scalars
from full_disk import largest_file

from dlrm_jax.errors import UserError
from dlrm_jax.training.record import Record, owned, write_result


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What the event files beside the lines ought to say."""
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in lines(path):
        step, split = entry.pop("step"), entry.pop("split")
        for name, value in entry.items():
            if value is not None:
                found.setdefault(f"{split}/{name}", []).append((step, value))
    return found


def train(record: Record, first: int, last: int) -> None:
    for step in range(first, last + 1):
        record(step, "train", {"loss": 1 / 2**step})
    record(last, "validation", {"auc": 0.5, "log_loss": float("nan"), "examples": 7})


def test_a_full_disk_is_named_with_its_file(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with Record(path, 0) as record:
        train(record, 1, 3)
    match = r"cannot write .*/{}: .*; check that .* the disk is large enough"
    with largest_file(10):
        with pytest.raises(UserError, match=match.format("metrics.jsonl")):
            Record(path, 2)
        with pytest.raises(UserError, match=match.format("config.json")):
            write_result(tmp_path / "config.json", "x" * 100)
    assert [entry["step"] for entry in lines(path)] == [1, 2, 3, 3], "nothing is lost"


def test_lines_of_steps_that_are_done_again_are_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with Record(path, 0) as record:
        train(record, 1, 3)
        record(3, "test", {"auc": 0.75})
    with path.open("a") as file:
        file.write('{"step": 2, "spl')
    with Record(path, 2) as record:
        assert [entry["step"] for entry in lines(path)] == [1, 2]
        record(3, "train", {"loss": float("inf")})
    assert lines(path)[-1] == {"step": 3, "split": "train", "loss": None}
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("from_the_first", [True, False])
def test_event_files_say_the_same(tmp_path: Path, from_the_first: bool):
    path, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with Record(path, 0, events if from_the_first else None) as record:
        train(record, 1, 3)
        record(3, "test", {"auc": 0.75})
        train(record, 4, 5)  # beyond the last checkpoint
    with Record(path, 3, events) as record:
        train(record, 4, 6)
        record(6, "test", {"auc": 0.25})
    found = scalars(events)
    assert found == told(path)
    assert found["test/auc"] == [(6, 0.25)]
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert "validation/log_loss" not in found


def test_events_are_on_disk_before_the_file_is_closed(tmp_path: Path):
    with Record(tmp_path / "metrics.jsonl", 0, tmp_path / "tensorboard") as record:
        record(1, "train", {"loss": 0.5})
        assert scalars(tmp_path / "tensorboard") == {"train/loss": [(1, 0.5)]}


def test_a_workdir_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"workdir .*run cannot be used: .*use a directory on ano"),
        owned(tmp_path / "run"),
    ):
        pytest.fail("the body must not run")


def test_a_workdir_of_another_user(tmp_path: Path, read_only: Callable[[Path], None]):
    (tmp_path / "run").mkdir()
    read_only(tmp_path / "run")
    with (
        pytest.raises(UserError, match=r"Permission denied.*; give one that you can wr"),
        owned(tmp_path / "run"),
    ):
        pytest.fail("the body must not run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"mine": 1}\n{"step": 900, "split": "train", "loss": 1}\n', "line 1: .*mine"),
        ('{"step": 1, "split": "train", "loss": 1}\n\nday\tclicks\n', "line 3: .*day"),
        ('{"step": 1.5, "split": "train"}\n', "line 1"),
        ("my note", "line 1: .* got 'my note'; move the file away"),
    ],
)
def test_lines_of_others_are_not_dropped(content: str, message: str, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        Record(path, 0)
    assert path.read_text() == content


@pytest.mark.parametrize("last", ["{", '{"step": 2, "sp', '{"step": 2, \0\0\0\n', "\0\0\0"])
def test_lines_of_a_run_that_has_saved_nothing_are_dropped(last: str, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "split": "train", "loss": 1}}\n{last}')
    Record(path, 0)
    assert path.read_text() == ""


@pytest.mark.parametrize(("kind", "what"), [("file", "a file"), ("link", "a link to nothing")])
def test_a_workdir_that_is_no_directory(tmp_path: Path, kind: str, what: str):
    workdir = tmp_path / "w"
    if kind == "file":
        workdir.touch()
    else:
        workdir.symlink_to("nowhere")
    with pytest.raises(UserError, match=f"expected a directory, got {what}"), owned(workdir):
        pass
    assert list(tmp_path.iterdir()) == [workdir]


def test_the_directory_of_data_is_no_workdir(tmp_path: Path):
    arrays = tmp_path / "day_0_dense.npy"
    arrays.touch()
    with pytest.raises(UserError, match=r"has prepared data \(day_0_dense.npy\)"), owned(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [arrays]
    (tmp_path / "checkpoints").mkdir()  # an earlier version made a run of it
    with owned(tmp_path):
        pass


@pytest.mark.parametrize(
    ("name", "kind", "own"),
    [
        ("days.json", "a loop over days", "checkpoints"),
        ("study.sqlite3", "a search", "checkpoints"),
        ("checkpoints", "a run", "days.json"),
    ],
)
def test_a_workdir_of_another_kind(tmp_path: Path, name: str, kind: str, own: str):
    (tmp_path / name).mkdir()
    with (
        pytest.raises(UserError, match=f"is that of {kind}: it has {name}; give another workdir"),
        owned(tmp_path, own),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / own).mkdir()  # earlier versions mixed them
    with owned(tmp_path, own):
        pass


@pytest.mark.parametrize("name", ["summary.json", "evaluation.json", "calibration.json"])
@pytest.mark.parametrize("text", ["mine", '{"mesh": "1x1"}'])
def test_a_file_of_a_user_with_the_name_of_a_result_stays(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    with (
        pytest.raises(UserError, match=f"has a file {name} that isn't the result .* move it"),
        owned(tmp_path),
    ):
        pass
    assert (tmp_path / name).read_text() == text
    (tmp_path / "checkpoints").mkdir()  # then it is a run's
    with owned(tmp_path):
        pass

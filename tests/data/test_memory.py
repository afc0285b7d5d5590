"""Files are read whole once; a change anywhere in them is noticed."""

import errno
import fcntl
import json

import numpy as np
import pytest
from test_directory import write_day

from dlrm_jax import run_data
from dlrm_jax.data import memory
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats.compression import file_hash, sampled_hash
from dlrm_jax.errors import UserError


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Names of the files that are hashed."""
    found = []

    def counted(path):
        found.append(path.name)
        return file_hash(path)

    monkeypatch.setattr(memory, "file_hash", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def test_a_change_in_the_middle_of_a_large_file_is_other_data(tmp_path, read):
    for number in range(2):
        write_day(tmp_path, number)
        rows = len(np.load(tmp_path / f"day_{number}_labels.npy"))
        wide = np.zeros((rows, 300_000), np.float32)  # the sample is of 4 MiB
        np.save(tmp_path / f"day_{number}_dense.npy", wide)
    path = tmp_path / "day_0_dense.npy"
    first, sample = load_directory(tmp_path), sampled_hash(path)
    assert len(read) == 6
    with path.open("r+b") as file:
        file.seek((path.stat().st_size - (1 << 18)) // 15 - 5000)  # between two parts of the sample
        file.write(b"1")
    assert sampled_hash(path) == sample
    second = load_directory(tmp_path)
    assert second.fingerprint != first.fingerprint
    assert read[6:] == [path.name]
    assert load_directory(tmp_path).fingerprint == second.fingerprint
    assert len(read) == 7


def test_all_processes_together_read_arrays_once_though_nothing_is_kept(
    tmp_path, read, monkeypatch
):
    for number in range(3):
        write_day(tmp_path, number)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    handed_out = []
    monkeypatch.setattr(
        run_data, "on_process_0", lambda find: (handed_out.append(find()), handed_out[0])[1]
    )
    first = run_data._read(tmp_path, 1, "")
    assert sorted(read) == sorted(path.name for path in tmp_path.glob("day_*"))
    monkeypatch.setattr(run_data, "on_process_0", lambda _: json.loads(json.dumps(handed_out[0])))
    other = run_data._read(tmp_path, 1, "")
    assert len(read) == 9
    for name in ("fingerprint", "earlier_fingerprints", "id_ranges", "table_rows"):
        assert getattr(other, name) == getattr(first, name)
    write_day(tmp_path, 1, n=6)
    with pytest.raises(UserError, match="has other arrays here than in process 0; give all"):
        run_data._read(tmp_path, 1, "")


def test_one_record_has_all_that_is_known_of_a_file(tmp_path, read):
    """And what earlier versions have found stays."""
    (tmp_path / "a").write_text("a")
    memory.remembered(tmp_path, {tmp_path / "a": lambda: 5}, "number", {}, bool)
    assert memory.content_hash(tmp_path / "a") == file_hash(tmp_path / "a")
    memory.content_hash(tmp_path / "a")
    assert read == ["a"]
    [record] = (tmp_path / "cache").rglob("*.json")
    assert json.loads(record.read_text())["a"].keys() == {"mtime_ns", "hash", "number", "content"}


def test_a_cache_on_a_file_system_without_locks(tmp_path, read, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "a").write_text("a")
    assert memory.content_hash(tmp_path / "a") == file_hash(tmp_path / "a")
    assert "the next start reads its files again" in caplog.text
    assert "expected a file system with locks" in caplog.text

"""What ``--data`` names: raw files through a cache, or directories."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from criteo_lines import realistic, text

from dlrm_jax.data.check import check_ids
from dlrm_jax.data.dataset import load_dataset
from dlrm_jax.data.formats.npy import ArrayWriter
from dlrm_jax.data.preprocessing import pipeline
from dlrm_jax.errors import UserError


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(70))
    return path


@pytest.fixture
def prepared(monkeypatch):
    """One item each time arrays are prepared."""
    calls = []
    run = pipeline._run
    monkeypatch.setattr(pipeline, "_run", lambda *args: (calls.append(args), run(*args)))
    return calls


def copied(dataset):
    return {
        (split, number, name): np.array(array)
        for split, part in dataset.splits.items()
        for number, day in enumerate(part.days)
        for name, array in day.arrays.items()
    }


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, array in a.items():
        np.testing.assert_array_equal(array, b[key], err_msg=str(key))


def entry_of(cache_dir):
    (metadata,) = cache_dir.glob("*/metadata.json")
    return metadata.parent


def left_behind(cache_dir):
    return [path.name for path in cache_dir.iterdir() if path.suffix != ".lock"]


def test_prepared_once_per_content_and_option(raw, tmp_path, prepared):
    first = load_dataset(raw, tmp_path / "cache")
    assert_same(copied(first), copied(load_dataset(raw, tmp_path / "cache")))
    assert len(prepared) == 1
    other = load_dataset(raw, tmp_path / "cache", min_count=2)
    assert len(prepared) == 2
    assert other.fingerprint != first.fingerprint
    assert load_dataset(raw, tmp_path / "cache").fingerprint == first.fingerprint
    assert len(prepared) == 2


def test_a_directory_is_taken_as_it_is(raw, tmp_path, prepared):
    first = load_dataset(raw, tmp_path / "cache")
    again = load_dataset(entry_of(tmp_path / "cache"), tmp_path / "unused")
    assert first.fingerprint == again.fingerprint
    assert len(prepared) == 1
    assert not (tmp_path / "unused").exists()


def test_a_touched_file_is_hashed_and_not_prepared_again(raw, tmp_path, prepared):
    load_dataset(raw, tmp_path / "cache")
    os.utime(raw, ns=(1, 1))
    load_dataset(raw, tmp_path / "cache")
    assert len(prepared) == 1


def test_changed_content_of_the_same_size_is_noticed(raw, tmp_path, prepared):
    first = load_dataset(raw, tmp_path / "cache")
    content = raw.read_bytes()
    raw.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(raw, ns=(1, 1))
    second = load_dataset(raw, tmp_path / "cache")
    assert len(prepared) == 2
    assert first.fingerprint != second.fingerprint
    # The replaced arrays stay readable for those who hold them.
    assert first.train.days[0].ids.shape == second.train.days[0].ids.shape
    assert first.train.labels[0] == 1 - second.train.labels[0]
    assert left_behind(tmp_path / "cache") == [entry_of(tmp_path / "cache").name]


def test_the_fingerprint_ignores_path_and_time(raw, tmp_path):
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(raw.read_bytes())
    a, b = load_dataset(raw, tmp_path / "cache"), load_dataset(copy, tmp_path / "cache")
    assert a.fingerprint == b.fingerprint
    assert_same(copied(a), copied(b))


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "day_6_sparse.npy").unlink(),
        lambda entry: os.truncate(entry / "day_0_sparse.npy", 200),
        lambda entry: os.truncate(entry / "day_0_labels.npy", 0),
    ],
)
def test_a_damaged_entry_is_prepared_again(raw, tmp_path, prepared, damage):
    reference = copied(load_dataset(raw, tmp_path / "cache"))
    damage(entry_of(tmp_path / "cache"))
    assert_same(reference, copied(load_dataset(raw, tmp_path / "cache")))
    assert len(prepared) == 2


def test_an_entry_of_another_format_is_prepared_again(raw, tmp_path, prepared):
    load_dataset(raw, tmp_path / "cache")
    metadata = entry_of(tmp_path / "cache") / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"format": 2', '"format": 0'))
    load_dataset(raw, tmp_path / "cache")
    assert len(prepared) == 2


def test_a_full_disk_names_the_place(raw, tmp_path, monkeypatch):
    def full(self, chunk):
        raise OSError(errno.ENOSPC, "No space left")

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "append", full)
        with pytest.raises(UserError, match="No space left") as caught:
            load_dataset(raw, tmp_path / "cache")
    assert str(tmp_path / "cache") in str(caught.value)
    load_dataset(raw, tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == [entry_of(tmp_path / "cache").name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_raises_and_does_not_kill():
    with (
        pytest.raises(OSError, match="No space left"),
        ArrayWriter(Path("/dev/full"), (3,), np.float32) as writer,
    ):
        writer.append(np.zeros(3, np.float32))


def test_processes_that_need_the_same_entry_do_not_disturb_each_other(raw, tmp_path):
    program = (
        "import sys; from pathlib import Path; from dlrm_jax.data.dataset import load_dataset; "
        "print(load_dataset(Path(sys.argv[1]), Path(sys.argv[2])).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(raw), str(tmp_path / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fingerprints = {run.communicate(timeout=60)[0] for run in runs}
    assert fingerprints == {load_dataset(raw, tmp_path / "cache").fingerprint + "\n"}
    assert len(left_behind(tmp_path / "cache")) == 1


def test_paths_that_cannot_be_used(raw, tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: No such file"):
        load_dataset(tmp_path / "none.txt", tmp_path / "cache")
    with pytest.raises(UserError, match="found days none"):
        load_dataset(tmp_path, tmp_path / "cache")
    with pytest.raises(UserError, match="cannot make"):
        load_dataset(raw, raw)
    with pytest.raises(UserError, match="min_count: expected at least 1"):
        load_dataset(raw, tmp_path / "cache", min_count=0)
    raw.write_text("")
    with pytest.raises(UserError, match=r"train\.txt is empty"):
        load_dataset(raw, tmp_path / "cache")


def test_lines_as_odd_as_real_ones(raw, tmp_path):
    raw.write_text(realistic(200))
    dataset = load_dataset(raw, tmp_path / "cache")
    lines = raw.read_text().splitlines()
    assert sum(map(len, dataset.splits.values())) == len(lines)
    positives = sum(float(split.labels.sum()) for split in dataset.splits.values())
    assert positives == sum(line.startswith("1\t") for line in lines)
    for name, split in dataset.splits.items():
        check_ids(split, dataset.table_rows, dataset.bag_lengths, name)

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data import cache, criteo
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.criteo import kaggle_split, load_criteo
from dlrm_jax.errors import UserError

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "criteo_sample" / "train.txt"


def text(lines, seed=0):
    """Lines in Criteo's layout; values of the last day are partly new."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(lines):
        limit = 6 if i < lines * 6 // 7 else 9
        integers = ["" if n == 0 else str(n - 3) for n in rng.integers(0, 50, 13)]
        hashes = ["" if c == 0 else f"{c * 0x1234567:08x}" for c in rng.integers(0, limit, 26)]
        rows.append("\t".join([str(rng.integers(0, 2)), *integers, *hashes]))
    return "\n".join(rows) + "\n"


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(70))
    return path


def same(a, b):
    return all(
        np.array_equal(day.arrays[name], b.splits[split].days[0].arrays[name])
        for split in a.splits
        for day in a.splits[split].days
        for name in ("dense", "ids", "labels")
    )


@pytest.fixture
def prepared(monkeypatch):
    """Counts how often arrays are prepared."""
    calls = []
    prepare = criteo._prepare
    monkeypatch.setattr(criteo, "_prepare", lambda *a: (calls.append(a), prepare(*a)))
    return calls


def expected_ids(column, train_end, min_count):
    """The definition of ids in plain Python."""
    seen = [int(value, 16) for value in column[:train_end] if value]
    kept = sorted(
        {v for v in seen if seen.count(v) >= min_count}, key=lambda v: (-seen.count(v), v)
    )
    ids = {value: i + 2 for i, value in enumerate(kept)}
    return [ids.get(int(value, 16), 0) if value else 1 for value in column]


@pytest.mark.parametrize("min_count", [1, 9])
def test_arrays_are_what_the_definitions_say(raw, tmp_path, min_count, monkeypatch):
    monkeypatch.setattr(criteo, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(criteo, "_ROWS_PER_BLOCK", 7)
    dataset = load_criteo(raw, tmp_path / "cache", min_count)
    fields = [row.split("\t") for row in raw.read_text().splitlines()]
    splits = {"train": slice(0, 60), "test": slice(60, 65), "validation": slice(65, 70)}
    for feature in range(26):
        ids = expected_ids([row[14 + feature] for row in fields], 60, min_count)
        assert dataset.table_rows[feature] == max(ids[:60]) + 1
        for name, lines in splits.items():
            assert dataset.splits[name].days[0].ids[:, feature].tolist() == ids[lines]
    assert 0 in dataset.test.days[0].ids
    for name, lines in splits.items():
        split = dataset.splits[name]
        check_ids(split, dataset.table_rows, dataset.bag_lengths, name)
        assert split.labels.tolist() == [float(row[0]) for row in fields[lines]]
        dense = [[np.log1p(max(int(n or 0), 0)) for n in row[1:14]] for row in fields[lines]]
        (day,) = split.days
        np.testing.assert_allclose(day.dense, dense, rtol=1e-6)
        assert isinstance(day.ids, np.memmap)
        assert not day.ids.flags.writeable
    assert dataset.bag_lengths == (1,) * 26


@given(st.integers(14, 10_000))
def test_the_split_is_contiguous_and_even(lines):
    split = kaggle_split(lines)
    train, test, validation = split["train"], split["test"], split["validation"]
    assert (train.start, train.stop, test.stop) == (0, test.start, validation.start)
    assert validation.stop == lines
    last_day = lines - train.stop
    assert last_day <= train.stop / 6 <= last_day + 1
    assert 0 <= (test.stop - test.start) - (lines - test.stop) <= 1
    assert lines > test.stop


def test_kaggle_itself_is_split_as_published():
    split = kaggle_split(45_840_617)
    assert [s.stop - s.start for s in split.values()] == [39_291_958, 3_274_330, 3_274_329]


def test_thirteen_lines_are_too_few(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(13))
    with pytest.raises(UserError, match="at least 14 lines"):
        load_criteo(path, tmp_path / "cache")
    path.write_text(text(14))
    splits = load_criteo(path, tmp_path / "cache").splits
    assert [len(split) for split in splits.values()] == [12, 1, 1]


def test_prepared_once_per_content_and_option(raw, tmp_path, prepared):
    first = load_criteo(raw, tmp_path / "cache")
    assert same(first, load_criteo(str(raw), str(tmp_path / "cache")))
    assert len(prepared) == 1
    other = load_criteo(raw, tmp_path / "cache", min_count=2)
    assert len(prepared) == 2
    assert other.fingerprint != first.fingerprint
    assert load_criteo(raw, tmp_path / "cache").fingerprint == first.fingerprint
    assert len(prepared) == 2


def test_a_touched_file_is_hashed_and_not_prepared_again(raw, tmp_path, prepared):
    load_criteo(raw, tmp_path / "cache")
    os.utime(raw, ns=(1, 1))
    load_criteo(raw, tmp_path / "cache")
    assert len(prepared) == 1
    (metadata,) = (tmp_path / "cache").glob("*/metadata.json")
    assert '"mtime_ns": 1,' in metadata.read_text()


def test_changed_content_of_the_same_size_is_noticed(raw, tmp_path, prepared):
    first = load_criteo(raw, tmp_path / "cache")
    content = raw.read_bytes()
    raw.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(raw, ns=(1, 1))
    second = load_criteo(raw, tmp_path / "cache")
    assert len(prepared) == 2
    assert first.fingerprint != second.fingerprint
    # The replaced arrays stay readable for those who hold them.
    assert first.train.labels[0] == 1 - second.train.labels[0]


def test_the_fingerprint_ignores_path_and_time(raw, tmp_path):
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(raw.read_bytes())
    a, b = load_criteo(raw, tmp_path / "cache"), load_criteo(copy, tmp_path / "cache")
    assert a.fingerprint == b.fingerprint
    assert same(a, b)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "metadata.json").write_text("{"),
        lambda entry: (entry / "metadata.json").write_text("[1]"),
        lambda entry: (entry / "metadata.json").unlink(),
        lambda entry: (entry / "test_sparse.npy").unlink(),
        lambda entry: os.truncate(entry / "train_sparse.npy", 200),
        lambda entry: os.truncate(entry / "train_labels.npy", 0),
    ],
)
def test_a_damaged_entry_is_prepared_again(raw, tmp_path, prepared, damage):
    first = load_criteo(raw, tmp_path / "cache")
    reference = {name: np.array(split.days[0].ids) for name, split in first.splits.items()}
    del first
    (entry,) = (path.parent for path in (tmp_path / "cache").glob("*/metadata.json"))
    damage(entry)
    again = load_criteo(raw, tmp_path / "cache")
    assert len(prepared) == 2
    for name, split in again.splits.items():
        np.testing.assert_array_equal(split.days[0].ids, reference[name])


def test_an_entry_of_another_schema_is_prepared_again(raw, tmp_path, prepared, monkeypatch):
    load_criteo(raw, tmp_path / "cache")
    (metadata,) = (tmp_path / "cache").glob("*/metadata.json")
    metadata.write_text(metadata.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    load_criteo(raw, tmp_path / "cache")
    assert len(prepared) == 2


def left_behind(cache_dir):
    return [path.name for path in cache_dir.iterdir() if path.suffix != ".lock"]


def test_a_bad_line_leaves_nothing(raw, tmp_path):
    raw.write_text(text(70) + "nonsense\n")
    with pytest.raises(UserError, match="line 71"):
        load_criteo(raw, tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_nothing(raw, tmp_path, monkeypatch, error):
    appended = []

    def append(self, block):
        appended.append(block)
        if len(appended) > 4:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(cache.ArrayWriter, "append", append)
        with pytest.raises((UserError, KeyboardInterrupt)) as caught:
            load_criteo(raw, tmp_path / "cache")
    if isinstance(error, OSError):
        assert str(tmp_path / "cache") in str(caught.value)
        assert "No space left" in str(caught.value)
    assert left_behind(tmp_path / "cache") == []
    load_criteo(raw, tmp_path / "cache")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_raises_and_does_not_kill(tmp_path):
    with (
        pytest.raises(OSError, match="No space left"),
        cache.ArrayWriter(Path("/dev/full"), (3,), np.float32) as writer,
    ):
        writer.append(np.zeros(3, np.float32))


def test_leftovers_of_a_killed_run_are_removed(raw, tmp_path):
    load_criteo(raw, tmp_path / "cache")
    (entry,) = (path.parent for path in (tmp_path / "cache").glob("*/metadata.json"))
    entry.rename(f"{entry}.partial")
    load_criteo(raw, tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == [entry.name]


def test_threads_that_need_the_same_entry_prepare_it_once(raw, tmp_path, prepared):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(load_criteo(raw, tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(prepared) == 1
    assert len(results) == 4
    assert all(same(results[0], result) for result in results)


def test_processes_that_need_the_same_entry_do_not_disturb_each_other(raw, tmp_path):
    program = (
        "import sys; from dlrm_jax.data.criteo import load_criteo; "
        "print(load_criteo(sys.argv[1], sys.argv[2]).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(raw), str(tmp_path / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fingerprints = {run.communicate(timeout=60)[0] for run in runs}
    assert fingerprints == {load_criteo(raw, tmp_path / "cache").fingerprint + "\n"}
    assert len(left_behind(tmp_path / "cache")) == 1


def test_a_file_that_grows_while_it_is_read(raw, tmp_path, monkeypatch):
    read_blocks = criteo.read_blocks

    def growing(path, *rest):
        yield from read_blocks(path, *rest)
        with path.open("a") as file:
            file.write(text(1))

    monkeypatch.setattr(criteo, "read_blocks", growing)
    with pytest.raises(UserError, match="changed while it was read"):
        load_criteo(raw, tmp_path / "cache")


def test_paths_that_cannot_be_used(raw, tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: No such file"):
        load_criteo(tmp_path / "none.txt", tmp_path / "cache")
    with pytest.raises(UserError, match="Is a directory"):
        load_criteo(tmp_path, tmp_path / "cache")
    with pytest.raises(UserError, match="cache directory"):
        load_criteo(raw, raw)
    with pytest.raises(UserError, match="min_count must be at least 1"):
        load_criteo(raw, tmp_path / "cache", min_count=0)


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs a sample of Criteo's data")
def test_real_lines(tmp_path):
    dataset = load_criteo(SAMPLE, tmp_path)
    lines = SAMPLE.read_text().splitlines()
    assert sum(map(len, dataset.splits.values())) == len(lines)
    positives = sum(float(split.labels.sum()) for split in dataset.splits.values())
    assert positives == sum(line.startswith("1\t") for line in lines)
    for name, split in dataset.splits.items():
        check_ids(split, dataset.table_rows, dataset.bag_lengths, name)
    assert sum(dataset.table_rows) > 5000

"""The ids of a directory are read once, and again if a file changes."""

import dataclasses
import json
import os
import shutil
import threading

import numpy as np
import pytest
from criteo_lines import text
from test_directory import ROWS, SIZES, write_day, write_multi_hot

from dlrm_jax.config import Config
from dlrm_jax.data import check, id_ranges
from dlrm_jax.data.directory import Findings, load_directory
from dlrm_jax.data.formats import compression
from dlrm_jax.data.metadata import METADATA, Metadata
from dlrm_jax.data.preprocessing import conversion
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.errors import UserError
from dlrm_jax.run_data import load_data


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """Rows whose ids have been read to check them, a number for each array and chunk."""
    found = []

    def counting(function, rows_of):
        def counted(*arguments):
            result = function(*arguments)
            found.extend(rows_of(*arguments))
            return result

        return counted

    read = counting(id_ranges._read_ranges, lambda day, _: [len(day.examples)])
    monkeypatch.setattr(id_ranges, "_read_ranges", read)
    chunks = counting(check._chunks, lambda split: [len(split)])
    monkeypatch.setattr(check, "_chunks", chunks)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


@pytest.fixture
def foreign(tmp_path):
    directory = tmp_path / "foreign"
    directory.mkdir()
    for number in range(3):
        write_day(directory, number)
        rewrite(directory / f"day_{number}_labels.npy", lambda labels: np.mod(labels, 2, labels))
    return directory


def prepare(tmp_path, **options):
    if not (tmp_path / "log.txt").exists():
        (tmp_path / "log.txt").write_text(text(70))
    preprocess([tmp_path / "log.txt"], tmp_path / "out", Options(**options))
    return tmp_path / "out"


def start(directory):
    """What every start of a run does with its data."""
    _, data = load_data(Config(), directory)
    return data


def rewrite(path, change):
    array = np.load(path)
    change(array)
    np.save(path, array)


@pytest.mark.parametrize("sizes", [(), (1, 3) * 13])
def test_prepared_data_are_never_read(tmp_path, reads, sizes):
    directory = prepare(tmp_path, multi_hot_sizes=sizes)
    data = start(directory)
    assert reads == []
    ids = np.concatenate([np.asarray(day.ids) for x in data.splits.values() for day in x.days])
    columns = np.split(ids, np.cumsum(data.bag_lengths)[:-1], axis=1)
    assert data.id_ranges == [[min(x.min(), -1), x.max()] for x in columns]


def test_data_of_earlier_versions_are_read_once(tmp_path, reads):
    directory = prepare(tmp_path)
    metadata = dataclasses.asdict(Metadata.read(directory))
    del metadata["id_ranges"]
    (directory / METADATA).write_text(json.dumps(metadata))
    start(directory)
    assert sum(reads) == 70
    start(directory)
    assert sum(reads) == 70


def test_an_interrupted_preparation_knows_its_ranges(tmp_path, reads, monkeypatch):
    write = conversion.write_day

    def stopped(directory, number, *arguments):
        if number == 4:
            raise KeyboardInterrupt
        return write(directory, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_day", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path)
    directory = prepare(tmp_path)
    assert len(reads) == 4, "of the days that were there"
    start(directory)
    assert len(reads) == 4


def test_foreign_data_are_read_once(foreign, reads):
    assert start(foreign).table_rows == ROWS
    assert sum(reads) == sum(SIZES)
    assert start(foreign).table_rows == ROWS
    assert sum(reads) == sum(SIZES)


def test_a_changed_file_is_read_again(foreign, reads):
    start(foreign)
    reads.clear()
    path = foreign / "day_1_sparse.npy"
    rewrite(path, lambda ids: ids.put(4, 500))
    assert start(foreign).table_rows == (10, 501, 100)
    assert reads == [SIZES[1]]
    multi_hot = write_multi_hot(foreign, 0, np.load(foreign / "day_0_sparse.npy"))
    for number in (1, 2):
        write_multi_hot(foreign, number, np.load(foreign / f"day_{number}_sparse.npy") % 4)
    assert start(foreign).table_rows[0] == multi_hot[:, :3].max() + 1


def test_an_id_that_is_damaged_later_is_found(tmp_path, reads):
    directory = prepare(tmp_path)
    start(directory)
    rewrite(directory / "day_3_sparse.npy", lambda ids: ids.put(26 * 2 + 5, 10**6))
    with pytest.raises(UserError, match=r"train, row 32 .* feature C6: .* got 1000000\. Correct"):
        start(directory)
    # And though a note was invented that says otherwise.
    path = directory / METADATA
    path.write_text(path.read_text().replace('"ranges": [', '"ranges": ["a", '))
    with pytest.raises(UserError, match="got 1000000"):
        start(directory)


def test_an_id_that_is_damaged_in_place_is_found(tmp_path, reads, monkeypatch):
    """Also where a change in a file that is larger than the sample doesn't change its hash."""
    monkeypatch.setattr(compression, "_SAMPLE", 8)
    directory = prepare(tmp_path)
    path = directory / "day_3_sparse.npy"
    before = compression.sampled_hash(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(np.int32(10**6).tobytes())
    assert compression.sampled_hash(path) == before
    with pytest.raises(UserError, match="got 1000000"):
        start(directory)
    assert 10**6 in np.array(load_directory(directory).id_ranges)
    assert reads[0] == 10, "of one day"


def test_a_copy_of_prepared_data_is_read_once_if_it_has_other_times(tmp_path, reads):
    copy = shutil.copytree(prepare(tmp_path), tmp_path / "copy")
    start(copy)
    assert reads == []
    os.utime(copy / "day_0_sparse.npy")
    start(copy)
    start(copy)
    assert reads == [10]


def test_foreign_data_with_another_time_are_read_again(foreign, reads):
    """A change in the middle of a large file doesn't change the hash."""
    start(foreign)
    reads.clear()
    os.utime(foreign / "day_0_sparse.npy")
    start(foreign)
    start(foreign)
    assert reads == [SIZES[0]]


def test_threads_that_start_at_once_read_once(foreign, reads):
    threads = [threading.Thread(target=load_directory, args=[foreign]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(reads) == sum(SIZES)


def test_processes_leave_it_to_the_first(foreign, reads, monkeypatch):
    """Process 1 takes what process 0 has found, without a cache of its own."""
    found = Findings.of(load_directory(foreign))
    reads.clear()
    monkeypatch.setattr("dlrm_jax.run_data.on_process_0", lambda action: found)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert start(foreign).table_rows == ROWS
    assert reads == []


def test_without_a_cache_it_says_so(foreign, reads, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert start(foreign).table_rows == ROWS
    assert "the next start reads its files again" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", '{"day_0_sparse.npy": 5}', "null"])
def test_a_damaged_memory_is_written_anew(foreign, reads, tmp_path, content):
    start(foreign)
    reads.clear()
    [memory] = (tmp_path / "cache" / "dlrm_jax" / "id_ranges").glob("*.json")
    memory.write_text(content)
    assert start(foreign).table_rows == ROWS
    assert sum(reads) == sum(SIZES)


def test_ids_below_absent(foreign, reads):
    rewrite(foreign / "day_0_sparse.npy", lambda ids: ids.put(3, -2))
    with pytest.raises(UserError, match=r"train, row 1 .*, got -2\. Correct"):
        start(foreign)


def test_a_feature_without_ids(foreign, reads):
    for number in range(3):
        rewrite(foreign / f"day_{number}_sparse.npy", lambda ids: ids[:, 1].fill(-1))
    assert start(foreign).table_rows == (10, 1, 100)


def test_labels_and_weights_are_checked_at_every_start(foreign):
    start(foreign)
    weights = np.ones(SIZES[0], np.float32)
    weights[4] = np.nan
    np.save(foreign / "day_0_weights.npy", weights)
    for number in (1, 2):
        np.save(foreign / f"day_{number}_weights.npy", np.ones(SIZES[number], np.float32))
    with pytest.raises(UserError, match=r"^train, row 4 .* sample weight of 0 or more, got nan"):
        start(foreign)
    np.save(foreign / "day_0_weights.npy", np.ones(SIZES[0], np.float32))
    rewrite(foreign / "day_2_labels.npy", lambda labels: labels.put(0, -1))
    with pytest.raises(UserError, match=r"^validation, row 0 .* expected label 0 or 1, got -1"):
        start(foreign)

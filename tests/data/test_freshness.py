"""What is on disk is used if it is of the same content."""

import dataclasses
import errno
import json
import os
import shutil

import polars as pl
import pytest
from criteo_lines import text
from stopped_preparation import OPTIONS, RARE, ROWS, StoppedError, all_files, interrupt, log, stop

from dlrm_jax.data import memory
from dlrm_jax.data.dataset import load_dataset
from dlrm_jax.data.formats.compression import file_hash
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing import conversion, freshness, pipeline, sources, staging
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.errors import UserError


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(log())
    return path


def test_copies_in_turn_are_read_once_each(raw, tmp_path, monkeypatch):
    copy = shutil.copyfile(raw, tmp_path / "copy.csv")
    preprocess([raw], tmp_path / "out", OPTIONS)
    before, read = all_files(tmp_path / "out"), []
    file_hash = memory.file_hash
    monkeypatch.setattr(memory, "file_hash", lambda path: (read.append(path), file_hash(path))[1])
    with pytest.raises(UserError, match="min_count was 1, now 2"):
        preprocess([copy], tmp_path / "out", RARE)
    assert read == [], "with other options, copies don't matter"
    for path in (copy, raw, copy):
        preprocess([path], tmp_path / "out", OPTIONS)
    assert read == [copy]
    assert all_files(tmp_path / "out") == before


def test_unfinished_metadata_are_made_again(raw, tmp_path, monkeypatch):
    partial = interrupt(monkeypatch, raw, pipeline, "delete")
    (partial / "metadata.json").write_text("")
    assert sum(preprocess([raw], tmp_path / "out", OPTIONS).days) == ROWS


def damage(path, kind):
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: {"empty": 0, "cut": path.stat().st_size // 2}[kind]])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("staged.json", "empty"),
        ("staged.json", "gone"),
        ("000001.json", "cut"),
        ("000001.arrow", "cut"),
        ("both", "gone"),
    ],
)
def test_staged_remains_of_a_power_cut_are_made_again(
    raw, tmp_path, monkeypatch, caplog, name, kind
):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 20)
    expected = preprocess([raw], tmp_path / "whole", OPTIONS)
    staged = interrupt(monkeypatch, raw, conversion, "write_day") / "columns" / "0"
    chunks = len(list(staged.glob("*.arrow")))
    if name == "both":
        damage(staged / "staged.json", kind)
        damage(staged / "000001.arrow", kind)
    else:
        damage(staged / name, kind)
        if name == "000001.json":  # it isn't read otherwise
            (staged / "staged.json").unlink()
    made = []
    write = staging.replacing
    monkeypatch.setattr(staging, "replacing", lambda path: (made.append(path), write(path))[1])
    found = preprocess([raw], tmp_path / "out", OPTIONS)
    assert len(made) == (0 if name == "staged.json" else chunks - 1)
    assert "damaged" in caplog.text or (name, kind) == ("staged.json", "gone")
    assert dataclasses.replace(found, id_ranges=expected.id_ranges) == expected, "but for times"
    for path in (tmp_path / "whole").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize("stopped", [(conversion, "write_day"), (pipeline, "delete")])
def test_unfinished_work_on_copied_logs_goes_on(raw, tmp_path, monkeypatch, stopped):
    interrupt(monkeypatch, raw, *stopped)
    raw.rename(tmp_path / "moved.csv")
    os.utime(tmp_path / "moved.csv", ns=(1, 1))
    monkeypatch.setattr(staging, "replacing", None)  # nothing is parsed again
    assert sum(preprocess([tmp_path / "moved.csv"], tmp_path / "out", OPTIONS).days) == ROWS


@pytest.mark.parametrize("stopped", [None, (conversion, "write_day")])
def test_other_content_of_the_same_size_and_time_is_noticed(raw, tmp_path, monkeypatch, stopped):
    os.utime(raw, ns=(1, 1))
    if stopped:
        interrupt(monkeypatch, raw, *stopped)
    else:
        preprocess([raw], tmp_path / "out", OPTIONS)
    raw.write_text(log(first=1))
    os.utime(raw, ns=(1, 1))
    if stopped:
        found = preprocess([raw], tmp_path / "out", OPTIONS)
        assert found.fingerprint == preprocess([raw], tmp_path / "other", OPTIONS).fingerprint
    else:
        with pytest.raises(UserError, match="out exists and doesn't match this command: inputs"):
            preprocess([raw], tmp_path / "out", OPTIONS)


def test_a_description_of_earlier_versions_has_no_hash_of_inputs(raw, tmp_path, monkeypatch):
    preprocess([raw], tmp_path / "out", OPTIONS)
    path = tmp_path / "out" / "metadata.json"
    described = json.loads(path.read_text())
    del described["made_from"]["inputs"][0]["hash"]
    path.write_text(json.dumps(described))
    monkeypatch.setattr(pipeline, "_run", None)
    preprocess([raw], tmp_path / "out", OPTIONS)
    assert freshness.is_ours(tmp_path / "out")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_rows_of_a_file_that_was_there_only_meanwhile_are_not_kept(tmp_path, monkeypatch, form):
    """As when logs rotate: a file is moved away while it is read, and back again."""
    path, other, kept = tmp_path / f"log.{form}", tmp_path / "other", tmp_path / "kept"
    for file, first in ((path, 0), (other, 1)):
        file.write_text(log(first))
        if form == "parquet":
            pl.read_csv(file).write_parquet(file)
    read = sources.Source.chunks

    def moved(self):
        path.rename(kept)
        other.rename(path)
        yield from read(self)

    with monkeypatch.context() as patch:
        patch.setattr(sources.Source, "chunks", moved)
        with pytest.raises(UserError, match=f"{path} changed while it was read"):
            preprocess([path], tmp_path / "out", OPTIONS)
    kept.rename(path)
    found = preprocess([path], tmp_path / "out", OPTIONS)
    assert found.fingerprint == preprocess([path], tmp_path / "whole", OPTIONS).fingerprint


def test_parquet_is_hashed_and_read_from_the_same_file(tmp_path, monkeypatch):
    path, other, scan = tmp_path / "log", tmp_path / "other", pl.scan_parquet
    for file, first in ((path, 0), (other, 1)):
        pl.DataFrame({"y": [0, 1] * 14, "a": range(first, first + 28)}).write_parquet(file)
    expected = file_hash(path)

    def replaced(file, **options):
        other.rename(path)
        return scan(file, **options)

    monkeypatch.setattr(sources.pl, "scan_parquet", replaced)
    source = sources.Source(path, OPTIONS)
    rows = pl.concat([parse().frame for _, parse in source.chunks()])
    assert source.content_hash == expected
    assert rows["c0"].to_list() == list(range(28))


def test_a_log_that_cannot_be_read_to_its_end_is_named(raw, tmp_path, monkeypatch):
    preprocess([raw], tmp_path / "out", OPTIONS)
    (tmp_path / "cache").mkdir()
    (tmp_path / "out").rename(tmp_path / "cache" / "out")
    os.utime(raw)

    def broken(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(memory, "file_hash", broken)
    for call in (
        lambda: preprocess([raw], tmp_path / "cache" / "out", OPTIONS),
        lambda: pipeline.find_copy(raw, tmp_path / "cache", OPTIONS),
    ):
        with pytest.raises(UserError, match=f"cannot read {raw}: Input/output error"):
            call()


def test_unfinished_work_on_other_logs_is_not_used(raw, tmp_path, monkeypatch):
    interrupt(monkeypatch, raw, conversion, "write_day")
    raw.write_text(log(first=1))
    os.utime(raw, ns=(1, 1))
    found = preprocess([raw], tmp_path / "out", OPTIONS)
    assert found.fingerprint == preprocess([raw], tmp_path / "other", OPTIONS).fingerprint


def test_copied_logs_use_the_same_cache(tmp_path, monkeypatch):
    raw = tmp_path / "train.txt"
    raw.write_text(text(14))
    first = load_dataset(raw, tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copyfile(raw, tmp_path / "elsewhere" / "copy.txt")
    monkeypatch.setattr(pipeline, "_run", None)
    for path in (copy, raw, copy):
        assert load_dataset(path, tmp_path / "cache").fingerprint == first.fingerprint
    copy.write_text(text(14, seed=1))
    with pytest.raises(TypeError):
        load_dataset(copy, tmp_path / "cache")
    assert Metadata.read(first.directory or tmp_path).fingerprint == first.fingerprint


@pytest.mark.parametrize("noted", [True, False])
def test_a_log_read_in_part_is_forgotten_alone(raw, tmp_path, monkeypatch, noted):
    """If it is touched, and if an earlier version noted no hash of it: how much changed is unknown.

    The columns of the log before it stay.
    """
    monkeypatch.setattr(sources, "CHUNK_ROWS", 30)
    logs = [raw, tmp_path / "second.csv"]
    logs[1].write_text(log(first=1))
    parse = sources.Source._parsed

    def parsed(self, unparsed, first):
        return stop() if self.path == logs[1] and first > 30 else parse(self, unparsed, first)

    with monkeypatch.context() as patch:
        patch.setattr(sources.Source, "_parsed", parsed)
        with pytest.raises(StoppedError):
            preprocess(logs, tmp_path / "out", OPTIONS)
    columns = tmp_path / "out.partial" / "columns"
    assert [len(list((columns / name).glob("*.arrow"))) for name in "01"] == [3, 1]
    if noted:
        os.utime(logs[1], ns=(1, 1))
    else:
        begun = tmp_path / "out.partial" / "begun.json"
        described = json.loads(begun.read_text())
        for file in described["inputs"]:
            del file["hash"]
        begun.write_text(json.dumps(described))
    read = []

    def noticed(self, unparsed, first):
        read.append(self.path)
        return parse(self, unparsed, first)

    monkeypatch.setattr(sources.Source, "_parsed", noticed)
    preprocess(logs, tmp_path / "out", OPTIONS)
    assert read == [logs[1]] * 3

"""What is on disk is complete and of what was asked for, whatever happened before."""

import errno
import threading
from pathlib import Path

import pytest
from criteo_lines import text

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats import criteo_text, lines
from dlrm_jax.data.formats.npy import ArrayWriter
from dlrm_jax.data.preprocessing import conversion, day_arrays, pipeline, sources, vocabulary
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.errors import UserError
from dlrm_jax.workspaces import MARKER


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(text(70))
    return path


def test_another_input_or_option_is_named(raw, tmp_path):
    out = tmp_path / "out"
    preprocess([raw], out, Options())
    with pytest.raises(UserError, match="min_count was 1, now 2"):
        preprocess([raw], out, Options(min_count=2))
    raw.write_text(text(70, seed=1))
    with pytest.raises(UserError, match="inputs were"):
        preprocess([raw], out, Options())


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stopped", ["parse_chunk", "learn", "encode", "append"])
def test_an_interrupted_run_goes_on(raw, tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 4000)
    monkeypatch.setattr(day_arrays, "_CHUNK_ROWS", 7)
    owners = {
        "parse_chunk": criteo_text,
        "learn": vocabulary,
        "encode": vocabulary,
        "append": ArrayWriter,
    }
    calls, limit = [], 3

    def counted(function):
        def call(*args, **kwargs):
            calls.append(args)
            if limit and len(calls) > limit:
                raise StoppedError
            return function(*args, **kwargs)

        return call

    owner = owners[stopped]
    monkeypatch.setattr(owner, stopped, counted(getattr(owner, stopped)))
    with pytest.raises(StoppedError):
        preprocess([raw], tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()
    before, limit = len(calls), 0
    preprocess([raw], tmp_path / "out", Options())
    interrupted = len(calls) - before
    preprocess([raw], tmp_path / "whole", Options())
    whole = len(calls) - before - interrupted
    if stopped in ("parse_chunk", "learn"):  # half-written arrays are written from the beginning
        assert interrupted == whole - 3
    for path in sorted((tmp_path / "whole").glob("*.npy")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_what_another_run_left_is_not_used(raw, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_day", lambda *args: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            preprocess([raw], tmp_path / "out", Options(min_count=9))
    preprocess([raw], tmp_path / "out", Options())
    preprocess([raw], tmp_path / "other", Options())
    for path in (tmp_path / "other").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_full_disk_is_one_error(raw, tmp_path, monkeypatch):
    def full(self, chunk):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "append", full)
        with pytest.raises(UserError, match=r"No space left on device\. Finished files are kept"):
            preprocess([raw], tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()
    preprocess([raw], tmp_path / "out", Options())


def test_a_file_that_grows_while_it_is_read(raw, tmp_path, monkeypatch):
    parse = criteo_text.parse_chunk

    def growing(chunk, path, first_line, on_bad_line):
        if first_line == 1:
            with raw.open("a") as file:
                file.write(text(1))
        return parse(chunk, path, first_line, on_bad_line)

    monkeypatch.setattr(criteo_text, "parse_chunk", growing)
    with pytest.raises(UserError, match="changed while it was read"):
        preprocess([raw], tmp_path / "out", Options())


def test_a_damaged_output_is_named(raw, tmp_path):
    preprocess([raw], tmp_path / "out", Options())
    (tmp_path / "out" / "day_3_dense.npy").unlink()
    with pytest.raises(UserError, match="the arrays of day 3 can't be read"):
        preprocess([raw], tmp_path / "out", Options())
    (tmp_path / "out" / "metadata.json").unlink()
    with pytest.raises(UserError, match="found days 0, 1, 2, 4"):
        load_directory(tmp_path / "out")


def test_what_is_finished_but_not_renamed_is_kept(raw, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "delete", lambda path: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            preprocess([raw], tmp_path / "out", Options())
    monkeypatch.setattr(pipeline, "_run", None)  # isn't needed any more
    left = tmp_path / "out.partial" / "vocabularies" / ".0.parquet.dlrm_jax"  # by a killed process
    left.mkdir()
    (left / MARKER).touch()
    preprocess([raw], tmp_path / "out", Options())
    assert not list((tmp_path / "out").rglob(f"*{MARKER}"))
    assert len(load_directory(tmp_path / "out").train) == 60


def test_threads_that_make_the_same_output_make_it_once(raw, tmp_path, monkeypatch):
    opened = []
    source = sources.Source.chunks
    monkeypatch.setattr(
        sources.Source, "chunks", lambda self: (opened.append(self), (yield from source(self)))
    )
    threads = [
        threading.Thread(target=preprocess, args=([raw], Path(tmp_path / "out"), Options()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert len(load_directory(tmp_path / "out").train) == 60

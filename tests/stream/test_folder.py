from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest
from stream_log import SCHEMA, log, publish, write_segments

from dlrm_jax.errors import UserError
from dlrm_jax.stream.folder import Folder, check_folder
from dlrm_jax.stream.position import Position
from dlrm_jax.stream.source import Segment


def read(folder: Folder, after: Position | None = None) -> list[Segment]:
    """All segments behind a position."""
    found = []
    while (segment := folder.next(after)) is not None:
        found.append(segment)
        after = Position(segment.note.name, segment.note.rows, ended=True)
    return found


def names(segments: list[Segment]) -> list[str]:
    return [segment.note.name for segment in segments]


def test_complete_files_come_in_the_order_of_their_names(tmp_path: Path):
    write_segments(tmp_path, [3, 4])
    (tmp_path / ".s002.parquet").write_bytes(b"half")
    (tmp_path / "s002.parquet.tmp").write_bytes(b"half")
    log(5).write_ipc(tmp_path / "a.arrow")
    found = read(Folder(tmp_path, SCHEMA))
    assert names(found) == ["a.arrow", "s000.parquet", "s001.parquet"]
    assert [len(segment.frame) for segment in found] == [5, 3, 4]
    assert found[0].frame.equals(log(5).select(found[0].frame.columns))


def test_a_segment_that_comes_later_is_next(tmp_path: Path):
    write_segments(tmp_path, [3])
    folder = Folder(tmp_path, SCHEMA)
    (first,) = read(folder)
    end = Position(first.note.name, 3, ended=True)
    assert folder.next(end) is None
    publish(tmp_path, "s001.parquet", log(2))
    assert names(read(folder, end)) == ["s001.parquet"]


def test_a_position_within_a_segment_gives_it_again(tmp_path: Path):
    write_segments(tmp_path, [3, 4])
    noted = tuple(segment.note for segment in read(Folder(tmp_path, SCHEMA)))
    again = Folder(tmp_path, SCHEMA, noted[:1])
    after = Position("s000.parquet", 2, ended=False)
    segment = again.next(after)
    assert segment
    assert segment.note == noted[0]
    (tmp_path / "s000.parquet").unlink()
    with pytest.raises(UserError, match=r"s000\.parquet is gone, and the run has read 2"):
        Folder(tmp_path, SCHEMA, noted[:1]).next(after)


def test_a_segment_that_changed_is_an_error(tmp_path: Path):
    write_segments(tmp_path, [3, 4])
    folder = Folder(tmp_path, SCHEMA)
    noted = tuple(segment.note for segment in read(folder))
    end = Position("s001.parquet", 4, ended=True)
    content = (tmp_path / "s000.parquet").read_bytes()
    (tmp_path / "s000.parquet").write_bytes(content)  # a copy has another time alone
    assert folder.next(end) is None
    assert Folder(tmp_path, SCHEMA, noted).next(end) is None
    damaged = bytearray(content)
    damaged[50] ^= 1
    (tmp_path / "s000.parquet").write_bytes(damaged)
    os.utime(tmp_path / "s000.parquet", ns=(0, 0))
    for each in (folder, Folder(tmp_path, SCHEMA, noted)):
        with pytest.raises(UserError, match=r"s000\.parquet has changed after it was read"):
            each.next(end)
    with pytest.raises(UserError, match=r"s000\.parquet has changed after"):
        Folder(tmp_path, SCHEMA, noted[:1]).next(Position("s000.parquet", 1, ended=False))


def test_a_name_before_the_position_is_an_error(tmp_path: Path):
    write_segments(tmp_path, [3, 4])
    folder = Folder(tmp_path, SCHEMA)
    read(folder)
    publish(tmp_path, "s000b.parquet", log(2))
    with pytest.raises(UserError, match=r"s000b\.parquet sorts before s001\.parquet.* move it out"):
        folder.next(Position("s001.parquet", 4, ended=True))


def test_segments_that_were_read_may_be_deleted_and_are_forgotten(tmp_path: Path):
    write_segments(tmp_path, [3, 4])
    folder = Folder(tmp_path, SCHEMA)
    read(folder)
    (tmp_path / "s000.parquet").unlink()
    assert folder.next(Position("s001.parquet", 4, ended=True)) is None
    assert [note.name for note in folder.consumed] == ["s001.parquet"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"hello"), "x: expected a Parquet file or an Arrow"),
        (lambda path: path.write_bytes(b""), "x: expected a Parquet file or an Arrow"),
        (lambda path: path.write_bytes(b"PAR1" + bytes(99)), r"cannot read the segment \S+x: "),
        (lambda path: path.write_bytes(b"ARROW1" + bytes(99)), r"cannot read the segment \S+x: "),
        (lambda path: log(2).drop("item").write_parquet(path), "x has no column 'item'"),
        (
            lambda path: log(2).with_columns(price=pl.lit([1])).write_parquet(path),
            "x, column price: expected numbers",
        ),
        (lambda path: path.mkdir(), "expected files alone in .* got the directory x"),
        (os.mkfifo, "expected files alone in .* got the pipe, device or socket x"),
        (lambda path: path.symlink_to("/dev/zero"), "got the pipe, device or socket x"),
        (lambda path: path.symlink_to("x"), "cannot read .*x: .*symbolic links"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, write, message: str):
    write(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        Folder(tmp_path, SCHEMA).next(None)


def test_a_link_to_a_file_is_a_segment(tmp_path: Path):
    (tmp_path / "segments").mkdir()
    log(3).write_parquet(tmp_path / "file")
    (tmp_path / "segments" / "x").symlink_to(tmp_path / "file")
    assert names(read(Folder(tmp_path / "segments", SCHEMA))) == ["x"]


def test_a_truncated_segment_is_named(tmp_path: Path):
    for name, write in (("a.parquet", log(99).write_parquet), ("b.arrow", log(99).write_ipc)):
        directory = tmp_path / name[0]
        directory.mkdir()
        write(directory / name)
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=f"cannot read the segment .*{name}"):
            Folder(directory, SCHEMA).next(None)


def test_without_a_directory(tmp_path: Path):
    with pytest.raises(UserError, match="expected a directory of segments, there is no"):
        check_folder(tmp_path / "none", tmp_path / "run")


def test_a_run_among_the_segments(tmp_path: Path):
    (tmp_path / "segments").mkdir()
    (tmp_path / "link").symlink_to("segments")
    for workdir in ("segments", "segments/run", "link/run", "segments/../link"):
        with pytest.raises(UserError, match="expected a directory outside of the stream's folder"):
            check_folder(tmp_path / "segments", tmp_path / workdir)
    check_folder(tmp_path / "segments", tmp_path / "run")
    for models in ("segments", "link/models", "."):
        with pytest.raises(UserError, match=r"publish: expected .* the stream's folder"):
            check_folder(tmp_path / "segments", tmp_path / "run", tmp_path / models)
    check_folder(tmp_path / "segments", tmp_path / "run", tmp_path / "models")

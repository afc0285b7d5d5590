"""NumPy files that are written chunk by chunk and mapped."""

import errno
import math
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from full_disk import largest_file

from dlrm_jax.data.formats.npy import ArrayWriter, NpzWriter, map_npy, map_npz, write_npy
from dlrm_jax.errors import UserError


def drawn(shapes):
    rng = np.random.default_rng(0)
    return {
        str(number): rng.integers(0, 2**31 - 1, shape).astype(np.int32)
        for number, shape in enumerate(shapes)
    }


def write(path, arrays, rows):
    with NpzWriter(path) as archive:
        for name, array in arrays.items():
            with archive.member(name, array.shape, array.dtype.type) as writer:
                for start in range(0, len(array), rows):
                    writer.append(array[start : start + rows])


@pytest.fixture
def arrays():
    return drawn([(5, 3), (5, 1), (5, 2)])


@pytest.mark.parametrize(
    "shapes", [[(5, 3), (5, 1), (5, 2)], [(0, 3)], [], [(4,), (2, 3, 2), (10_000, 2)]]
)
@pytest.mark.parametrize("rows", [1000, 1])
def test_an_archive_has_the_bytes_that_savez_writes(tmp_path, shapes, rows):
    arrays = drawn(shapes)
    write(tmp_path / "a.npz", arrays, rows)
    np.savez(tmp_path / "b.npz", **arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    mapped = map_npz(tmp_path / "a.npz")
    assert list(mapped) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(mapped[name], array)
        assert mapped[name].dtype == array.dtype
        assert isinstance(mapped[name], np.memmap)


def test_columns_first_and_other_types_are_mapped(tmp_path):
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "s": np.int64(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    mapped = map_npz(tmp_path / "a.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(mapped[name], array)
    assert not mapped["f"].flags.writeable


def test_an_array_has_the_bytes_that_save_writes(tmp_path, arrays):
    for name, array in arrays.items():
        with ArrayWriter(tmp_path / "a.npy", array.shape, np.int32) as writer:
            writer.append(array[:2])
            writer.append(array[2:])
        np.save(tmp_path / "b.npy", array)
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes(), name


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int64])
def test_a_whole_array_is_written(tmp_path, shape, dtype):
    array = np.arange(math.prod(shape), dtype=dtype).reshape(shape)
    for given in (array, np.asfortranarray(array), array[::-1] if shape else array):
        write_npy(tmp_path / "a.npy", given)
        found = np.load(tmp_path / "a.npy")
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, given)


def compressed(path, arrays):
    np.savez_compressed(path, **arrays)


def half(path, arrays):
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:300])


def member_cut_short(path, arrays):
    np.savez(path, **arrays)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("1.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.npy", content[:-4])


def not_an_array(path, arrays):
    del arrays
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.npy", b"text")


def objects(path, arrays):
    np.savez(path, **{name: array.astype(object) for name, array in arrays.items()})


def a_changed_byte(path, arrays):
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (compressed, r"member 0\.npy: expected an array that isn't compressed"),
        (half, r"npz file: File is not a zip file; is it complete\?"),
        (member_cut_short, r"member 1\.npy: expected 148 bytes for a int32 .*\(5, 1\), got 144"),
        (not_an_array, r"member 1\.npy: expected an array in NumPy's format"),
        (objects, r"member 0\.npy: .*objects can't be mapped"),
        (a_changed_byte, r"0\.npy"),
        (lambda path, arrays: None, "No such file"),
    ],
)
def test_what_cannot_be_mapped_is_named(tmp_path, arrays, damage, message):
    path = tmp_path / "day_0_sparse_multi_hot.npz"
    damage(path, arrays)
    with pytest.raises(UserError, match=message) as caught:
        map_npz(path)
    assert str(path) in str(caught.value)


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from dlrm_jax.data.formats.npy import NpzWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with NpzWriter(Path(sys.argv[1])) as archive, archive.member("0", (1 << 20,), np.int32) as out:
        for _ in range(1 << 10):
            out.append(np.zeros(1 << 10, np.int32))
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_named(tmp_path):
    with largest_file(1000), pytest.raises(OSError, match="File too large") as raised:
        write_npy(tmp_path / "a.npy", np.zeros(1000, np.float32))
    assert raised.value.errno == errno.EFBIG


def test_a_full_disk_raises_and_does_not_kill(tmp_path):
    command = [sys.executable, "-W", "error", "-c", FULL, str(tmp_path / "a.npz")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "OSError [Errno 27] File too large\n"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"'<i4'", b"'|O' "), (b"'<i4'", b"7    "), (b"(3, 4)", b"(1.5,)"), (b"False", b"0    "),
        (b"(3, 4)", b"(3, 4 "), (b"(3, 4)", b"(-1,-1"), (b"(3, 4)", b"(9, 9)"), (b"{", b"\x80"),
        (b"'descr'", b"'x'    "), (b"NUMPY\x01", b"NUMPY\x09"), (b"NUMPY", b"OTHER"),
        (b"\x93NUMPY", b"PK\x03\x04NU"),
    ],
)  # fmt: skip
def test_damaged_headers_are_named(tmp_path, old, new):
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.int32))
    np.savez(tmp_path / "a.npz", np.zeros((3, 4), np.int32))
    for name, read in (("a.npy", map_npy), ("a.npz", map_npz)):
        path = tmp_path / name
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        with pytest.raises(UserError, match=name):
            read(path)

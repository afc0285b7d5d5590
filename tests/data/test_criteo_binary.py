"""MLPerf's binary form holds what the text holds."""

import gzip

import numpy as np
import pytest
from criteo_lines import IN_TIME, dense_of, ids_of, text
from served import encode_logs

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats import compression, criteo_binary
from dlrm_jax.data.formats.compression import zstd
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.errors import UserError


def samples(lines, seed=0):
    """The lines of `text` as 40 int32 each: what is missing is 0, negative integers are, too."""
    rows = []
    for line in text(lines, seed).splitlines():
        label, *fields = line.split("\t")
        integers = [max(int(field or 0), 0) for field in fields[:13]]
        rows.append([int(label), *integers, *(int(field or "0", 16) for field in fields[13:])])
    return np.array(rows, "<i4")


def zstandard_frames(content):
    """Several frames: a decompressor returns each whole, more bytes than were asked for."""
    frames = (content[start : start + 3000] for start in range(0, len(content), 3000))
    return b"".join(map(zstd.compress, frames))


@pytest.mark.parametrize(
    "compress", [bytes, pytest.param(gzip.compress, marks=pytest.mark.thorough), zstandard_frames]
)
def test_the_same_arrays_as_of_the_text(tmp_path, compress, monkeypatch):
    monkeypatch.setattr(criteo_binary, "CHUNK_BYTES", 7 * criteo_binary.SAMPLE_BYTES)
    monkeypatch.setattr(compression, "_CHUNK", 1000)
    (tmp_path / "train.txt").write_text(text(70))
    (tmp_path / "train.bin").write_bytes(compress(samples(70).tobytes()))
    options = Options(compatible="reference")
    preprocess([tmp_path / "train.txt"], tmp_path / "a", options)
    preprocess([tmp_path / "train.bin"], tmp_path / "b", options)
    text_data, binary_data = (load_directory(tmp_path / name) for name in "ab")
    assert text_data.table_rows == binary_data.table_rows
    for split in IN_TIME:
        for of in (ids_of, dense_of):
            np.testing.assert_array_equal(of(text_data, split), of(binary_data, split))
        assert text_data.splits[split].labels.tolist() == binary_data.splits[split].labels.tolist()


def test_files_for_validation_and_test(tmp_path):
    paths = [tmp_path / f"{name}.bin" for name in ("train", "val", "test")]
    for number, path in enumerate(paths):
        path.write_bytes(samples(5 + number, number).tobytes())
    preprocess(paths[:1], tmp_path / "out", Options(), paths[1:])
    dataset = load_directory(tmp_path / "out")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 5, "validation": 6, "test": 7,
    }  # fmt: skip
    assert dataset.test.labels.tolist() == samples(7, 2)[:, 0].tolist()


def test_cut_short(tmp_path):
    (tmp_path / "train.bin").write_bytes(samples(20).tobytes()[:-4])
    with pytest.raises(UserError, match="156 are left after sample 19; was the download"):
        preprocess([tmp_path / "train.bin"], tmp_path / "out", Options())


def test_a_bad_label(tmp_path):
    content = samples(70)
    content[33, 0] = 7
    (tmp_path / "train.bin").write_bytes(content.tobytes())
    with pytest.raises(UserError, match=r"sample 34, column 1 \(label\): expected 0 or 1, found 7"):
        preprocess([tmp_path / "train.bin"], tmp_path / "out", Options())
    metadata = preprocess([tmp_path / "train.bin"], tmp_path / "out", Options(on_bad_line="skip"))
    assert (metadata.skipped_lines, sum(metadata.days)) == (1, 69)


@pytest.fixture
def both(tmp_path):
    """The same rows in both forms; some values are missing."""
    (tmp_path / "log.txt").write_text(text(70))
    (tmp_path / "log.bin").write_bytes(gzip.compress(samples(70).tobytes()))
    return tmp_path / "log.txt", tmp_path / "log.bin"


def test_missing_values_of_text_have_an_id_that_the_binary_form_does_not_give(both, tmp_path):
    raw, binary = both
    preprocess([raw], tmp_path / "out", Options())
    message = f"{binary} is in MLPerf's binary form, which stores missing values as 0; .* "
    with pytest.raises(UserError, match=f"{message}in {tmp_path / 'out'} .* in column C1"):
        encode_logs([binary], tmp_path / "out")
    with pytest.raises(UserError, match=f"{message}in {tmp_path / 'out'} .* in column C1"):
        preprocess([binary], tmp_path / "grown", Options(), grow=tmp_path / "out")
    for paths in ([raw, binary], [binary, raw]):
        with pytest.raises(UserError, match=f"{message}in {raw} .* in column C1"):
            preprocess(paths, tmp_path / "mixed", Options())


@pytest.mark.parametrize(
    ("compatible", "missing"),
    [("reference", True), pytest.param("", False, marks=pytest.mark.thorough)],
)
def test_both_forms_may_meet_where_they_mean_the_same(both, tmp_path, compatible, missing):
    raw, binary = both
    if not missing:
        content = samples(70)
        content[:, 14:] += 1
        binary.write_bytes(content.tobytes())
        lines = [[*map(str, row[:14]), *(f"{x:x}" for x in row[14:])] for row in content.tolist()]
        raw.write_text("".join("\t".join(line) + "\n" for line in lines))
    preprocess([raw], tmp_path / "out", Options(compatible=compatible))
    of_text, of_binary = (encode_logs([path], tmp_path / "out")[0].ids for path in both)
    np.testing.assert_array_equal(of_text, of_binary)
    preprocess([*both], tmp_path / "mixed", Options(compatible=compatible))


def test_missing_values_that_training_did_not_have_are_a_warning(both, tmp_path, caplog):
    raw, binary = both
    preprocess([binary], tmp_path / "out", Options())
    encode_logs([binary], tmp_path / "out")
    assert not caplog.text
    encode_logs([raw], tmp_path / "out")
    assert f"{raw} has missing values in column C1, the data in {tmp_path / 'out'} had none" in (
        caplog.text
    )

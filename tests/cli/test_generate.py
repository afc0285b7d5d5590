from __future__ import annotations

import dataclasses
import gzip
import re
import signal
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from full_disk import largest_file
from main_job import ROOT, in_background, run

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats.compression import zstd
from dlrm_jax.data.formats.criteo_format import MAY_BE_EMPTY
from dlrm_jax.data.formats.criteo_text import parse_chunk
from dlrm_jax.data.generated.locality import StackProfile
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

PROGRAM = ("-m", "dlrm_jax", "generate")
N = 20_000
EXAMPLES = ("--preset=small", f"--examples={N}")


def generate(*flags: str) -> str:
    result = run(*flags, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def refused(*flags: str, cwd: Path = ROOT, program: tuple[str, ...] = PROGRAM) -> str:
    result = run(*flags, program=program, cwd=cwd, PYTHONPATH=str(ROOT))
    assert result.returncode == 2, result.stderr[-2000:]
    message = result.stderr.strip()
    assert message.startswith("error: ")
    assert "\n" not in message, "one message, no traceback"
    return message


def printed_ceiling(output: str) -> float:
    match = re.search(r"best possible AUC.*: ([0-9.]+) ", output)
    assert match, output
    return float(match[1])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("raw") / "train.txt"
    return path, generate(*EXAMPLES, f"--output={path}")


def fields_of(lines: bytes) -> np.ndarray:
    return np.array([line.split("\t") for line in lines.decode().splitlines()])


def read_as_torchrec(directory: Path, day: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Header by hand, then plain bytes: as TorchRec maps these files, with no use of ours."""
    arrays = []
    for name, dtype, width in (("dense", "<f4", 13), ("sparse", "<i4", 26), ("labels", "<i4", 1)):
        content = (directory / f"day_{day}_{name}.npy").read_bytes()
        assert content[:8] == b"\x93NUMPY\x01\x00"
        start = 10 + int.from_bytes(content[8:10], "little")
        header = content[10:start].decode()
        shape = re.search(r"'shape': \((\d+), (\d+)\)", header)
        assert shape
        assert int(shape[2]) == width
        assert f"'descr': '{dtype}'" in header
        assert "'fortran_order': False" in header
        arrays.append(np.frombuffer(content[start:], dtype).reshape(int(shape[1]), width))
    return tuple(arrays)


def test_raw_lines(raw: tuple[Path, str]):
    path, output = raw
    lines = path.read_bytes()
    parse_chunk(lines, path, 1)
    fields = fields_of(lines)
    assert fields.shape == (N, 40)
    assert np.mean(fields[:, 0] == "1") == pytest.approx(0.25, abs=0.02)
    assert 0.78 < printed_ceiling(output) < 0.85
    integers, categoricals = fields[:, 1:14], fields[:, 14:]
    assert (integers == "").any()
    assert (integers == "-1").any()
    empty = {f for f in range(26) if (categoricals[:, f] == "").any()}
    assert empty == MAY_BE_EMPTY
    assert set(map(len, np.unique(categoricals))) == {0, 8}
    assert f"{N:,} examples" in output


def test_same_flags_same_bytes_and_more_examples_begin_alike(raw: tuple[Path, str], tmp_path: Path):
    path, _ = raw
    lines = path.read_bytes()
    generate(*EXAMPLES, f"--output={tmp_path}/again.txt.gz")
    compressed = (tmp_path / "again.txt.gz").read_bytes()
    assert gzip.decompress(compressed) == lines
    assert len(compressed) < 0.7 * len(lines)
    generate(*EXAMPLES, f"--output={tmp_path}/again.txt.zst")
    with zstd.open(tmp_path / "again.txt.zst", "rb") as file:
        assert file.read() == lines
    assert (tmp_path / "again.txt.zst").stat().st_size < 0.7 * len(lines)
    generate("--preset=small", "--examples=777", f"--output={tmp_path}/fewer")
    fewer = (tmp_path / "fewer").read_bytes()
    assert fewer.count(b"\n") == 777
    assert lines.startswith(fewer)
    generate("--preset=small", "--examples=777", "--seed=1", f"--output={tmp_path}/other")
    assert (tmp_path / "other").read_bytes() != fewer


def test_arrays_are_the_same_examples(raw: tuple[Path, str], tmp_path: Path):
    output = tmp_path / "arrays"
    generate(*EXAMPLES, "--format=arrays", "--days=2", "--drift=0", f"--output={output}")
    assert len(list(output.iterdir())) == 6
    assert len(load_directory(output).train) == N
    dense, ids, labels = read_as_torchrec(output, 0)
    fields = fields_of(raw[0].read_bytes())
    np.testing.assert_array_equal(labels[:, 0], fields[:, 0].astype(int))
    integers = np.where(fields[:, 1:14] == "", "0", fields[:, 1:14]).astype(int)
    np.testing.assert_allclose(dense, np.log1p(np.maximum(integers, 0)), rtol=1e-6)
    for feature in range(26):
        # A bijection: as many pairs as ids and as values.
        values = fields[:, 14 + feature]
        pairs = set(zip(ids[:, feature].tolist(), values.tolist(), strict=True))
        assert len(pairs) == len(np.unique(ids[:, feature])) == len(np.unique(values))
        assert ((ids[:, feature] == 0) == (values == "")).all() == (feature in MAY_BE_EMPTY)


@pytest.mark.parametrize("form", ["raw", "arrays"])
def test_days(tmp_path: Path, form: str):
    output = tmp_path / "days"
    rows = "--table_rows=" + ",".join(["500"] * 26)
    flags = ("--zipf_exponent=0", "--days=3", "--drift=0.2", f"--format={form}")
    generate("--examples=5000", rows, *flags, f"--output={output}")
    if form == "raw":
        assert sorted(path.name for path in output.iterdir()) == ["day_0", "day_1", "day_2"]
        days = [fields_of((output / f"day_{day}").read_bytes())[:, 14:] for day in range(3)]
    else:
        days = [read_as_torchrec(output, day)[1] for day in range(3)]
    first, middle, last = (set(day[:, 0].tolist()) for day in days)
    assert all(len(day) == 5000 for day in days)
    assert len(last - middle) == pytest.approx(100, abs=30)
    assert len(middle - first) == pytest.approx(100, abs=30)


@pytest.mark.thorough
def test_locality_of_a_trace(tmp_path: Path):
    rng = np.random.default_rng(0)
    ids = np.cumsum(rng.integers(0, 2, 5000)) + rng.integers(0, 30, 5000)
    (tmp_path / "trace.txt").write_text("".join(f"{i}\n" for i in ids))
    profile = tmp_path / "profile.json"
    output = generate(f"--trace={tmp_path}/trace.txt", f"--save_profile={profile}")
    assert "5,000 accesses" in output
    assert StackProfile.load(profile) == StackProfile.measure(ids)

    flags = ("--format=arrays", "--days=2", *EXAMPLES)
    output = generate(*flags, f"--profile={profile}", f"--output={tmp_path}/a")
    assert 0.77 < printed_ceiling(output) < 0.86
    generate(*flags, f"--trace={tmp_path}/trace.txt", f"--output={tmp_path}/b")
    _, generated, _ = read_as_torchrec(tmp_path / "a", 0)
    np.testing.assert_array_equal(generated, read_as_torchrec(tmp_path / "b", 0)[1])
    wanted, got = StackProfile.load(profile), StackProfile.measure(generated[:, 2])
    bounds = np.arange(0, 60, 5)
    shares = [
        np.array([sum(c for d, c in zip(p.distances, p.counts, strict=True) if d <= b)
                  for b in bounds]) / sum(p.counts)
        for p in (wanted, got)
    ]  # fmt: skip
    np.testing.assert_allclose(shares[1], shares[0], atol=0.02)


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ((), "--output is missing"),
        (("--output=OUT",), "--examples is missing"),
        (
            ("--output=OUT", "--examples=0"),
            "--examples: expected an integer of at least 1, got '0'",
        ),
        (("--output=OUT", "--examples=9", "--trace=x", "--profile=y"), "got both"),
        (("--output=OUT", "--examples=9", "--save_profile=x"), "without --trace"),
        (("--output=OUT", "--examples=9", "--drift=0.1"), "without --days"),
        (("--save_profile=x", "--trace=x", "--seed=1"), "without --output"),
        (("--output=OUT", "--examples=9", "--profile=x", "--zipf_exponent=1"), "--zipf_exponent"),
        (("--output=OUT.gz", "--examples=9", "--days=2"), "makes a directory"),
        (("--output=OUT", "--examples=9", "--format=arrays"), "--days of 2 or more, as the last"),
        (("--output=OUT", "--examples=9", "--format=arrays", "--days=1"), "test, got 1"),
        (("--output=OUT", "--examples=9", "--table_rows=1,a"), "integers with commas"),
        (("--output=OUT", "--examples=9", "--table_rows=1,2"), "26"),
        (("--output=OUT", "--examples=9", "--preset=huge"), "--preset"),
        (("--output=OUT", "--examples=9", "--profile=nowhere"), "--profile"),
        (("--output=/proc/nowhere/OUT", "--examples=9"), "cannot write"),
        (("--output=FILE", "--examples=9"), "exists"),
        (("--output=FILE/OUT", "--examples=9"), "cannot write"),
        (("--output=OUT", "--batch_size=9"), "there is no flag --batch_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals(flags: tuple[str, ...], fragment: str, tmp_path: Path):
    (tmp_path / "FILE").touch()
    message = refused(*flags, cwd=tmp_path)
    assert fragment in message
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


@pytest.mark.parametrize("program", ["dlrm_jax.cli.generate"], indirect=True)
@pytest.mark.parametrize(
    "flags",
    [
        "out --preset=small",
        "out.zst --preset=small",
        "out --preset=small --format=arrays --days=2",
        "out --preset=small --days=2",
        "out --format=log --days=2 --users=50 --items=50",
    ],
)
def test_a_full_disk_leaves_nothing(program: ModuleType, flags: str, tmp_path: Path):
    cli_flags.parse(["generate", "--examples=2000", *f"--output={tmp_path}/{flags}".split()])
    with largest_file(10_000), pytest.raises(UserError, match=r"cannot write .* too large"):
        program.main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int):
    flags = ("--examples=1000000000", f"--output={tmp_path}/out")
    with in_background(*flags, program=PROGRAM) as process:
        while not list(tmp_path.iterdir()):
            assert process.returncode is None
            time.sleep(0.05)
        result = process.end(number)
    assert result.returncode == code
    assert result.stderr.strip() == f"stopped by {number.name}"
    assert list(tmp_path.iterdir()) == []


def test_a_log_of_clicks_is_prepared_with_its_schema(tmp_path: Path):
    flags = ("--days=2", "--examples=3000", "--users=100", "--items=50")
    output = generate("--format=log", *flags, f"--output={tmp_path}/clicks")
    days = [f"day_{day}: 3,000 impressions, " for day in range(2)]
    lines = output.splitlines()[:2]
    assert all(line.startswith(day) for line, day in zip(lines, days, strict=True))
    assert re.search(r"best possible: AUC 0\.\d+, AUC without last_viewed 0\.\d+, GAUC", output)
    schema = Schema.from_json(tmp_path / "clicks" / "schema.json")
    both = Schema.from_json(tmp_path / "clicks" / "schema_labels.json")
    assert both == dataclasses.replace(schema, label=("clicked", "purchased"))
    logs = sorted((tmp_path / "clicks").glob("day_*.parquet"))
    metadata = preprocess(logs, tmp_path / "arrays", Options(schema=schema))
    assert metadata.columns[-1] == "last_viewed"
    assert metadata.bag_lengths[-1] == 8
    assert not any(metadata.missing[name] for name in ("user_id", "item_id", "price"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format=log", "--examples=9"), "--days is missing"),
        (("--format=log", "--examples=9", "--days=2", "--preset=small"), "--preset has no effect"),
        (("--format=raw", "--examples=9", "--users=50"), "without --format=log"),
    ],
)
def test_flags_of_other_formats_are_refused(flags: tuple[str, ...], message: str, tmp_path: Path):
    assert message in refused(*flags, f"--output={tmp_path}/x")

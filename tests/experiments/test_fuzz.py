"""How programs end that read changed inputs: tracebacks and hangs are failures."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from main_job import run

from dlrm_jax.cli.main import COMMANDS
from experiments.campaigns import command_lines
from experiments.campaigns.failures import failure_of
from experiments.campaigns.harness import Ended
from experiments.campaigns.mutations import (
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_npy,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

# Two formats of ours, and one of a program that doesn't check what it reads.
_CODE = """
import sys
from pathlib import Path
from dlrm_jax.cli.run import run
from experiments.campaigns import fuzz
from experiments.campaigns.inputs import FORMATS, Format

number = Path.cwd() / "number"
number.write_text("7")
fuzz.FORMATS["numbers"] = lambda good: Format(
    [number], lambda content, chance: b"x", [("tests.experiments.careless_program", "{input}")]
)
sys.argv[0] = "fuzz"
run(fuzz.main)
"""


def test_formats(tmp_path: Path):
    ended = run(
        "--formats=schema,MLPerf binary,numbers", "--count=2", "--output=figures.json",
        cwd=tmp_path, program=("-c", _CODE), TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    table = [line.rsplit(maxsplit=4) for line in ended.stdout.splitlines()[:5]]
    assert table[0] == ["fuzz", "tried", "refused", "accepted", "failures"]
    for name, tried, refused, accepted, failures in table[1:3]:
        assert int(tried) == 2 == int(refused) + int(accepted), name
        assert failures == "0"
    assert table[3] == ["numbers", "2", "0", "0", "1"], "equal ones are counted once"
    (command,) = tmp_path.glob("fuzz-*/numbers/*/command")
    assert "careless_program" in command.read_text()
    assert "ValueError: invalid literal" in command.with_name("stderr").read_text()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["cases"]["numbers"]["lost"]) == 1


_GOOD = """
import dataclasses, os, random, sys
from pathlib import Path
from experiments.campaigns import forks, fuzz, inputs
from experiments.campaigns.good import Good

scratch = Path.cwd()
settings = fuzz.settings(scratch) | {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
good = Good(scratch / "good", settings)
for name, make in inputs.FORMATS.items():
    each = make(good)
    sources = [x for x in each.sources if x.name == "plain.parquet"] or each.sources
    for number, (source, command) in enumerate((x, y) for x in sources for y in each.commands):
        one = dataclasses.replace(
            each, sources=[source], commands=[command], mutation=lambda content, chance: content
        )
        directory = scratch / name / str(number)
        directory.mkdir(parents=True)
        ended = forks.run(one.write(directory, random.Random(0)), directory, good.variables)
        if ended.outcome != "done" and inputs.LOADED not in "".join(ended.errors):
            sys.exit(f"{name}, {command}: {ended}")
"""


@pytest.mark.thorough
def test_good_inputs_are_accepted(tmp_path: Path):
    ended = run(cwd=tmp_path, program=("-c", _GOOD))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("code", "stderr", "peak", "exceeded", "failure"),
    [
        (0, "I0101 a log", 0, None, ""),
        (2, "error: no", 0, None, ""),
        (2, "usage", 0, None, "other"),
        (1, "error: no", 0, None, "other"),
        (-11, "", 0, None, "killed"),
        (-9, 'File "/x/dlrm_jax/a.py", line 7 in f', 0, "time", "hang, code -9, - at dlrm_jax/a"),
        (0, "", 3 << 30, None, "done"),
        (0, "Traceback (most recent call last):\nOSError: x", 0, None, "traceback"),
    ],
)  # fmt: skip
def test_ends(tmp_path: Path, code: int, stderr: str, peak: int, exceeded, failure: str):
    ended = Ended(code, "", stderr, 1.0, peak, exceeded)
    found = failure_of(ended, tmp_path / "out")
    assert found.startswith(failure)
    assert bool(found) == bool(failure)


def test_nothing_may_have_the_name_of_an_output_that_failed(tmp_path: Path):
    assert failure_of(Ended(2, "", "error: no", 1.0, 0), tmp_path)


@pytest.mark.parametrize(
    ("mutation", "content"),
    [
        (mutate_bytes, b"0123456789" * 10),
        (mutate_lines(","), b"a,b\n1,2\n3,4\n"),
        (mutate_json, b'{"a": [1, {"b": "x"}], "c": {}}'),
        (mutate_npy, b"12345678\x3a\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}\n"),
    ],
)  # fmt: skip
def test_mutations(mutation, content: bytes):
    changed = {mutation(content, random.Random(seed)) for seed in range(50)}
    assert len(changed - {content}) > 10
    assert changed == {mutation(content, random.Random(seed)) for seed in range(50)}


def test_command_lines_of_all_commands():
    assert command_lines.BASES.keys() == COMMANDS.keys()

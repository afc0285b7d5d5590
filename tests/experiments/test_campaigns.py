"""Campaigns count what is lost, and see it when something is."""

from __future__ import annotations

import errno
import json
import random
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from in_process import imported

from dlrm_jax.cli import flags
from dlrm_jax.errors import UserError
from dlrm_jax.training.orbax_io import save
from experiments.campaigns import faults, harness, shim
from experiments.campaigns.aims import Target
from experiments.campaigns.attempts import new_try, try_cut, try_fault, try_kill
from experiments.campaigns.bits import bits, differences
from experiments.campaigns.jobs import Job
from experiments.campaigns.pairs import Scene, two_runs
from experiments.campaigns.tally import Scratch, Tally

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

CAMPAIGNS = [
    f"experiments.campaigns.{path.stem}"
    for path in sorted(Path(harness.__file__).parent.glob("*.py"))
    if "\ndefine_tries(" in path.read_text()
]
TINY = str(Path(__file__).with_name("tiny_job.py"))
WHEN_COMPLETE = 2  # of the aims of training


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shim.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def tally() -> Tally:
    return Tally("tries", seed=0, minutes=1)


def tiny(form: str, scratch: Path) -> Target:
    """A job, what it makes when nothing disturbs it."""
    job = Job(("-I", "-S", TINY, form), "--workdir", scratch / "home")
    return Target("training", job, *job.unbroken(scratch / "unbroken"))


@pytest.mark.parametrize(
    "name",
    [
        *CAMPAIGNS,
        "experiments.benchmarks.peers.__main__",
        "experiments.benchmarks.serving.__main__",
    ],
)
def test_an_output_that_cannot_be_written_is_refused_at_the_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not after the hours of the campaign."""
    file = tmp_path / "file"
    file.touch()
    with imported(name) as program:
        for begin in ("mkdtemp", "TemporaryDirectory"):
            monkeypatch.setattr(tempfile, begin, None)
        for output in (tmp_path, file / "kills.json"):
            flags.parse([name, f"--output={output}"])
            with pytest.raises(UserError, match="--output: expected a file"):
                program.main()
        denied = PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", mock.Mock(side_effect=denied))
        flags.parse([name, f"--output={tmp_path / 'new' / 'kills.json'}"])
        with pytest.raises(UserError, match="--output: expected a directory that you can write to"):
            program.main()


@pytest.mark.parametrize(("form", "lost"), [("good", 0), ("forgetful", 1)])
def test_kills(tmp_path: Path, tally: Tally, form: str, lost: int):
    (tmp_path / "try").mkdir()
    try_kill(tally, tiny(form, tmp_path), WHEN_COMPLETE, tmp_path / "try")
    assert (tally.tried, tally.lost) == (1, lost)
    assert (tmp_path / "try").exists() == bool(lost), "what was lost stays"


@pytest.mark.parametrize(("form", "lost"), [("good", 0), ("unflushed", 1)])
def test_power_cuts(tmp_path: Path, tally: Tally, library: Path, form: str, lost: int):
    target = tiny(form, tmp_path)
    try_cut(tally, target, WHEN_COMPLETE, tmp_path / "try", library)
    assert (tally.tried, tally.lost) == (1, lost)


@pytest.mark.parametrize(("form", "lost"), [("good", 0), ("careless", 1)])
def test_disks(tmp_path: Path, tally: Tally, library: Path, form: str, lost: int):
    target = tiny(form, tmp_path)
    first = new_try(target, tmp_path / "counted", library, random.Random(0), 1)
    cases = faults.faults(faults.operations(first))
    case = "one write fails"
    try_fault(tally, target, {}, case, cases[case], 0, library)
    assert (tally.tried, tally.lost) == (1, lost)


@pytest.mark.thorough
def test_all_faults(tmp_path: Path, tally: Tally, library: Path):
    target = tiny("good", tmp_path)
    first = new_try(target, tmp_path / "counted", library, random.Random(0), 1)
    for case, fault in faults.faults(faults.operations(first)).items():
        if case != faults.SMALL_DISK or faults.can_mount(tmp_path / "mount"):
            try_fault(tally, target, {}, case, fault, 0, library)
    assert tally.lost == 0
    assert tally.tried >= 10


@pytest.mark.parametrize(("form", "lost"), [("good", False), ("unlocked", True)])
def test_two_at_once(tmp_path: Path, form: str, lost: bool):
    scene = Scene(tmp_path)
    scene.run = tiny(form, tmp_path)

    class AtOnce(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return 0.05

    (tmp_path / "try").mkdir()
    assert bool(two_runs(scene, tmp_path / "try", AtOnce())) == lost


@pytest.mark.thorough
@pytest.mark.parametrize("campaign", ["kills", "power_cuts", "disks"])
def test_programs(tmp_path: Path, campaign: str):
    module = f"experiments.campaigns.{campaign}"
    flags = ("--only=preparation", "--count=1", f"--output={tmp_path}/figures.json")
    ended = harness.run(["-m", module, *flags], seconds=600)
    assert ended.outcome == "done", ended.stderr
    assert ended.stdout.split()[:4] == [campaign, "tried", "survived", "lost"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(case["tried"] and not case["lost"] for case in figures["cases"].values())


def test_tally(tmp_path: Path, tally: Tally, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="1"):
        tally.finish(None)  # nothing was tried
    tally.count("a", [])
    tally.finish(tmp_path / "figures.json")
    tally.count("b", [])
    with Scratch(tally) as scratch:
        tally.count("b", ["different: x", "missing: y"])
    assert scratch.exists(), "it stays if something was lost"
    scratch.rmdir()
    with pytest.raises(SystemExit, match="1"):
        tally.finish(tmp_path / "figures.json")
    rows = capsys.readouterr().out.splitlines()
    assert [row.split() for row in rows[-4:-1]] == [
        ["a", "1", "1", "0"],
        ["b", "2", "1", "1"],
        ["all", "3", "2", "1"],
    ]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["cases"]["b"] == {"tried": 2, "lost": ["different: x; missing: y"]}


def test_tries_end_with_the_time_and_can_be_repeated():
    assert list(Tally("x", 0, minutes=0).rounds(3)) == []
    assert list(Tally("x", 0, minutes=1).rounds(3)) == [0, 1, 2]
    numbers = {
        Tally("x", seed, 1).chance(kind, number).random()
        for seed in (0, 1)
        for kind in ("a", "b")
        for number in (0, 1)
        for _ in range(2)
    }
    assert len(numbers) == 8


def test_bits(tmp_path: Path):
    for name, value in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        save(tmp_path / name / "dense", {"a": np.array([value]), "b": {"c": np.arange(3)}})
        (tmp_path / name / "metrics.jsonl").write_text("{}\n")
        summary = {"auc": 0.5, "examples_per_second": value, "resumed_from": None}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
        (tmp_path / name / ".lock").write_text(name)
    one = bits(tmp_path / "one")
    assert sorted(one) == ["dense:a", "dense:b/c", "metrics.jsonl", "summary.json"]
    (tmp_path / "other" / "metrics.jsonl").unlink()
    (tmp_path / "other" / "rest").mkdir()
    assert differences(one, bits(tmp_path / "same")) == []
    assert differences(one, bits(tmp_path / "other")) == [
        "missing: metrics.jsonl", "left over: rest", "different: dense:a",
    ]  # fmt: skip
    for path in (tmp_path / "same" / "dense").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:-1])
    (damaged,) = differences(one, bits(tmp_path / "same"))[-1:]
    assert damaged == "left over: dense"

"""Two processes publish a run, of which they have the tables between them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from main_job import SMALL, Program, arrays, in_background, run
from publishing_run import compacted, files_in
from stream_job import SIZES
from stream_job import flags as stream_flags
from stream_log import write_segments

from dlrm_jax.publishing.published import newest
from dlrm_jax.training.journal_entry import read_entry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

PROGRAM = ("-m", "dlrm_jax", "train")
# Rows of C2 and columns of C4 are split over the processes, C3 is in both.
FLAGS = (
    *(flag for flag in SMALL if not flag.startswith("--placements")),
    "--placements=C2=row_wise,C3=replicated,C4=column_wise",
    "--shard_dense_optimizer",
    "--optimizer=adam",
    "--mesh=1x4",
    "--processes=2",
)
# As the command does it, without the data that the run has generated.
EXPORT = """
import sys
from pathlib import Path
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel
export(TrainedModel.read(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3], "float32")
"""


def kill(launcher: Program) -> None:
    """Kills it and its processes."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    found = [int(number) for number in children.read_text().split()]
    assert len(found) == 2
    for process in (launcher.pid, *found):
        os.kill(process, signal.SIGKILL)
    launcher.end()


def assert_like_export(models: Path, workdir: Path, output: Path) -> None:
    """What is published is the last checkpoint's export, but for the last bits of predictions."""
    checkpoint = workdir / "checkpoints" / f"{saved_steps(workdir)[-1]:08d}"
    given = (str(checkpoint), str(output), workdir.name)
    assert run(*given, program=("-c", EXPORT)).returncode == 0
    published = newest(models)
    assert published
    deltas = [*published.chain.rest()]
    assert deltas
    assert published.chain.step == int(checkpoint.name)
    found = compacted(models)
    assert_same(files_in(found), files_in(output))
    assert found.name == str(int(checkpoint.name))


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    differ = {name for name in expected if found[name] != expected[name]}
    # Matrix products depend on the number of the host's devices that share its cores.
    predicted = "golden/probabilities.npy"
    assert differ <= {predicted, "manifest.json"}
    own, other = (np.frombuffer(x[predicted][128:], np.float32) for x in (found, expected))
    np.testing.assert_allclose(own, other, atol=1e-6)
    own, other = (json.loads(x["manifest.json"]) for x in (found, expected))
    for each in (own, other):
        del each["files"][predicted]
    assert own == other


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(x.name) for x in workdir.glob("checkpoints/*") if x.name.isdecimal())


def wait_for(path: Path, launcher: Program) -> None:
    deadline = time.monotonic() + 180
    while not path.exists() and launcher.returncode is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert launcher.returncode is None, launcher.end().stderr[-3000:]
    assert path.exists()


@pytest.mark.thorough
def test_killed_and_resumed_as_an_export(tmp_path: Path):
    """By its journal: with the bits of a run that wasn't killed."""
    models, workdir, unbroken = (tmp_path / name for name in ("models", "run", "unbroken"))
    publish = (f"--publish={models}", "--publish_every_seconds=0")
    flags = (*FLAGS, f"--workdir={workdir}", "--checkpoint_every=1000", "--journal_seconds=0.01")
    with in_background(*flags, *publish, "--steps=100000", program=PROGRAM) as launcher:
        wait_for(models / "1.deltas" / "000006", launcher)
        kill(launcher)
    saved = saved_steps(workdir)[-1]
    entry, _ = read_entry(max(workdir.glob("checkpoints/*.journal/0*")))
    published = newest(models)
    assert published
    done = len([*published.chain.rest()])
    before = published.chain.step
    steps = f"--steps={max(before, entry.step) + 3}"
    ended = run(*flags, *publish, steps, program=PROGRAM)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert f"resuming from step {saved} and its journal to step {entry.step}" in ended.stdout
    assert f"publish: goes on after step {before}" in ended.stdout
    published = newest(models)
    assert published
    assert len([*published.chain.rest()]) > done
    assert_like_export(models, workdir, tmp_path / "expected")
    ended = run(*FLAGS, steps, f"--workdir={unbroken}", program=PROGRAM)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found, expected = (arrays(x, saved_steps(x)[-1]) for x in (workdir, unbroken))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.thorough
def test_a_stream_whose_ids_have_parts(tmp_path: Path):
    models, workdir, segments = tmp_path / "models", tmp_path / "run", tmp_path / "segments"
    write_segments(segments, SIZES)
    dynamic = "--dynamic_ids=item=40:parts=4:evict_share=0.1,user=33:parts=2:admit_count=2"
    given = (*stream_flags(segments, workdir, dynamic), f"--publish={models}", "--processes=2")
    given = (*given, "--publish_every_seconds=0")
    for steps in (7, 0):
        ended = run(*given, f"--steps={steps}", "--stream_idle_seconds=0.1", program=PROGRAM)
        assert ended.returncode == 0, ended.stderr[-3000:]
    assert "publish: goes on after step 7" in ended.stdout
    assert_like_export(models, workdir, tmp_path / "expected")

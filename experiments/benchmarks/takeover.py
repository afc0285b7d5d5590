"""Measures what an interruption costs: seconds until a successor trains, and steps that it repeats.

    python -m experiments.benchmarks.takeover --after=10
    python -m experiments.benchmarks.takeover --data --only="standby,standby and journal"

A run on a stream, or with ``--data`` on examples that are there from the start, is killed so many
seconds after a checkpoint. It has the model of the Kaggle preset and small tables. Its successor is
the same command, started at the kill, with nothing in its caches, so that native kernels are built
anew, too, and with all; or a standby that was started before, without and with a journal. It prints
a table: seconds from SIGKILL to the record of the successor's first step, to the first step that
the killed run hadn't done, and the steps that it repeats, with the time that they had taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import numpy as np
import polars as pl
from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing, write_json
from dlrm_jax.text_table import text_table
from experiments.campaigns import harness

flags.DEFINE_float("after", 10, "Seconds from a checkpoint to the kill; such as 20.", 1, 1e4)
flags.DEFINE_float("journal_seconds", 2, "Seconds between entries of the journal.", 0.1, 1e4)
flags.DEFINE_integer("table_rows", 20_000, "Rows of each of the 26 tables.", 10, 10**8)
flags.DEFINE_integer("batch_size", 512, "Examples of a batch.", 1, 2**20)
flags.DEFINE_list("only", [], "Successors, instead of all; such as standby,restart.")
flags.DEFINE_bool("data", False, "Interrupts a run on examples that don't grow.")
flags.DEFINE_integer("checkpoint_every", 300, "Steps between checkpoints with --data.", 1)
flags.DEFINE_string("mesh", "1x1", "Data-parallel groups x model shards.")

_CATEGORICAL = [f"C{i}" for i in range(1, 27)]
_DENSE = [f"I{i}" for i in range(1, 14)]
_SEGMENTS, _ROWS = 60, 50_000
_EXAMPLES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of successor.

    Attributes:
        name: its name.
        is_standby: whether it is started before the kill.
        has_journal: whether the run has a journal.
        is_cold: whether its caches are empty.
    """

    name: str
    is_standby: bool = False
    has_journal: bool = False
    is_cold: bool = False

    @property
    def is_warm(self) -> bool:
        """Whether it starts with what earlier runs have left in the caches."""
        return not (self.is_standby or self.is_cold)


CASES = (
    Case("cold restart", is_cold=True),
    Case("restart"),
    Case("standby", is_standby=True),
    Case("standby and journal", is_standby=True, has_journal=True),
)


@dataclasses.dataclass(frozen=True)
class Interruption:
    """What a kill has cost.

    Attributes:
        first: seconds from the kill to the successor's first step.
        new: seconds from the kill to the first step that wasn't done before.
        steps: steps that were repeated.
        seconds: seconds that these had taken before the kill.
    """

    first: float
    new: float
    steps: int
    seconds: float


def write_stream(directory: Path, rows: int) -> None:
    """Writes a schema and segments of random clicks, whose ids follow a power law."""
    fields = {"label": "click", "categorical": _CATEGORICAL, "dense": _DENSE}
    write_json(directory / "schema.json", fields)
    (directory / "segments").mkdir()
    rng = np.random.default_rng(0)
    ids = {x: (rows * rng.random(_ROWS) ** 4).astype(np.int64) for x in _CATEGORICAL}
    columns = {"click": rng.integers(0, 2, _ROWS), **ids, **{x: rng.random(_ROWS) for x in _DENSE}}
    frame = pl.DataFrame(columns)
    for number in range(_SEGMENTS):
        with replacing(directory / "segments" / f"{number:03}.parquet") as path:
            frame.sample(fraction=1, shuffle=True, seed=number).write_parquet(path)


def interrupt(case: Case, directory: Path, workdir: Path) -> Interruption:
    """Kills a run and waits for its successor.

    Raises:
        UserError: one of both ended before; the message has its output.
    """
    command = _command(case, directory, workdir)
    metrics = workdir / "metrics.jsonl"
    with contextlib.ExitStack() as stack:
        trainer = stack.enter_context(harness.started(command, seconds=1e4))
        _wait(trainer, lambda: _checkpoints(workdir))
        successor = None
        if case.is_standby:
            standby = harness.started([*command, "--standby"], seconds=1e4)
            successor = stack.enter_context(standby)
            if not trainer.sleep(15):  # it imports and compiles
                raise _ended(trainer)
            before = _checkpoints(workdir)
            _wait(trainer, lambda: _checkpoints(workdir) - before)
        start = _last_step(metrics)
        if not trainer.sleep(FLAGS.after):
            raise _ended(trainer)
        file = metrics.stat().st_ino
        trainer.kill()
        killed = monotonic()
        trainer.end()
        last = _last_step(metrics)
        empty = {"XDG_CACHE_HOME": str(directory / "empty")} if case.is_cold else {}
        successor = successor or stack.enter_context(harness.started(command, empty, seconds=1e4))
        _wait(successor, lambda: metrics.stat().st_ino != file)
        begun = _last_step(metrics)
        _wait(successor, lambda: _last_step(metrics) > begun)
        first = monotonic() - killed
        _wait(successor, lambda: _last_step(metrics) > last)
        new = monotonic() - killed
    per_second = (last - start) / FLAGS.after
    return Interruption(first, new, last - begun, (last - begun) / per_second)


def _command(case: Case, directory: Path, workdir: Path) -> list[str]:
    """The arguments of Python for the run."""
    rows = ",".join([f"{FLAGS.table_rows}"] * len(_CATEGORICAL))
    if FLAGS.data:
        read = [
            f"--examples={_EXAMPLES}", f"--dense_features={len(_DENSE)}", f"--table_rows={rows}",
            "--steps=1000000000", "--eval_every=0", f"--checkpoint_every={FLAGS.checkpoint_every}",
        ]  # fmt: skip
    else:
        read = [
            f"--stream={directory / 'segments'}", f"--schema={directory / 'schema.json'}",
            f"--table_rows={FLAGS.table_rows}", "--checkpoint_every=0",
            f"--stream_checkpoint_seconds={1.5 * FLAGS.after}",
        ]  # fmt: skip
    journal = [f"--journal_seconds={FLAGS.journal_seconds}"] if case.has_journal else []
    return [
        "-m", "dlrm_jax", "train", "--preset=kaggle", *read, f"--batch_size={FLAGS.batch_size}",
        f"--mesh={FLAGS.mesh}", "--log_every=1", *journal, f"--workdir={workdir}",
    ]  # fmt: skip


def _checkpoints(workdir: Path) -> set[str]:
    return {path.name for path in workdir.glob("checkpoints/*") if path.name.isdecimal()}


def _last_step(metrics: Path) -> int:
    """The step of the last whole line; 0 if there is none."""
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def _wait(program: harness.Program, seen: Callable[[], object]) -> None:
    if not program.wait_for(lambda: bool(seen())):
        raise _ended(program)


def _ended(program: harness.Program) -> UserError:
    ended = program.end()
    return UserError(f"the run has ended: {ended}\n{ended.stderr[-2000:]}")


def main() -> None:
    """All cases, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if not FLAGS.data:
            write_stream(directory, FLAGS.table_rows)
        rows = []
        for number, case in enumerate(CASES):
            if FLAGS.only and case.name not in FLAGS.only:
                continue
            if case.is_warm:  # once before, which fills the caches
                interrupt(case, directory, directory / "first")
            found = interrupt(case, directory, directory / f"{number}")
            rows.append([
                case.name, f"{found.first:.1f}", f"{found.new:.1f}", f"{found.steps:,}",
                f"{found.seconds:.1f}",
            ])  # fmt: skip
        header = ["successor", "s to its first step", "s to a new step", "steps repeated", "s"]
        print(text_table(header, rows))


if __name__ == "__main__":
    run(main)

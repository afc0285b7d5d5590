"""A click-rate team's working day on one generated log: every command, one after the other.

    python -m experiments.working_day --output=day
    python -m experiments.working_day --output=day --examples=50000 --users=5000 --items=5000 \
        --epochs=4

It makes a log with two labels, prepares it, looks at it, trains and compares models, searches,
predicts, retrieves, and goes on to the next days. Each command is printed before it runs; copy any
of them. The last table says what each part has reached on its test rows; ``generate`` has printed
the best that is possible on each day. ``--output`` must be new. The default size shows that all
works, not which model is best: that takes the second command.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from dlrm_jax.cli.flags import FLAGS, require
from dlrm_jax.cli.run import run
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_json
from dlrm_jax.text_table import text_table

DAYS = 7

flags.DEFINE_string("output", None, "Directory to make; such as day.")
flags.DEFINE_integer("examples", 3_000, "Impressions of a day; such as 50000.", 100)
flags.DEFINE_integer("users", 300, "Users of the log; such as 5000.", 10)
flags.DEFINE_integer("items", 300, "Items of the log at a time; such as 5000.", 10)
flags.DEFINE_integer("epochs", 2, "Passes over the training split; such as 4.", 1)
flags.DEFINE_integer("trials", 2, "Trials of the search; such as 20.", 1)


class Day:
    """The commands of the day, in one directory.

    Args:
        directory: directory of all files.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.rows: list[list[str]] = []

    def run(self, module: str, *arguments: str) -> None:
        """Runs ``python -m module …``; @ in an argument stands for the directory and a slash.

        Raises:
            UserError: it fails.
        """
        given = [each.replace("@", f"{self.directory}/") for each in arguments]
        command = ["python", "-m", *module.split(), *given]
        status(f"\n$ {shlex.join(command)}")
        code = subprocess.run([sys.executable, *command[1:]]).returncode
        if code:
            raise UserError(f"the command above ended with exit code {code}")

    def train(self, name: str, data: str, *arguments: str, probabilities: bool = True) -> None:
        """Trains a model in runs/NAME, and notes what it has reached.

        Args:
            name: name of the run.
            data: name of the prepared data.
            arguments: further flags.
            probabilities: whether the loss makes predictions probabilities, or an order alone.
        """
        every = max(1, 5 * FLAGS.examples // 512 // 4)
        self.run(
            "dlrm_jax train", "--mesh=1x1", f"--data=@{data}", f"--workdir=@runs/{name}",
            f"--epochs={FLAGS.epochs}", f"--eval_every={every}", "--batch_size=512",
            "--optimizer=adam", "--learning_rate=0.01", *arguments,
        )  # fmt: skip
        metrics = self.summary(name)["test"]
        if not probabilities:
            del metrics["normalized_entropy"]
        self.note(name, metrics)

    def note(self, name: str, metrics: dict[str, float], tested_on: int = DAYS - 2) -> None:
        """Notes the metrics of a model on a day."""
        names = ("auc", "purchased/auc", "gauc:user_id", "normalized_entropy")
        found = [f"{metrics[x]:.4f}" if x in metrics else "" for x in names]
        self.rows.append([name, f"day_{tested_on}", *found])

    def summary(self, name: str) -> dict[str, dict[str, float]]:
        """The summary of a run."""
        return json.loads((self.directory / "runs" / name / "summary.json").read_text())

    def logs(self, days: range) -> str:
        """Files of some days, as a flag takes them."""
        return ",".join(f"@log/day_{day}.parquet" for day in days)


def main() -> None:
    """All steps, in order."""
    require("output")
    day = Day(Path(FLAGS.output))
    if day.directory.exists():
        raise UserError(f"--output: {FLAGS.output} exists already; give another name")
    day.directory.mkdir(parents=True)
    for step in STEPS:
        status(f"\n== {step.__doc__}")
        step(day)
    header = ["", "tested on", "AUC", "AUC of purchases", "GAUC by user", "normalized entropy"]
    status(text_table(header, day.rows))


def make_log(day: Day) -> None:
    """The log: users, items, clicks and purchases; new items each day."""
    day.run(
        "dlrm_jax generate", "--output=@log", "--format=log", f"--days={DAYS}",
        f"--examples={FLAGS.examples}", f"--users={FLAGS.users}", f"--items={FLAGS.items}",
    )  # fmt: skip


def prepare(day: Day) -> None:
    """Preparation: a split by time, and a page on what was prepared."""
    days = f"--input={day.logs(range(DAYS - 1))}"
    schema = json.loads((day.directory / "log/schema.json").read_text())
    write_json(day.directory / "alone.json", {**schema, "shared": {}})
    split = "--split=time:1d,1d"
    day.run("dlrm_jax preprocess", days, "--schema=@log/schema.json", split, "--output=@data")
    day.run("dlrm_jax preprocess", days, "--schema=@alone.json", split, "--output=@alone")
    both = "--schema=@log/schema_labels.json"
    day.run("dlrm_jax preprocess", days, both, split, "--output=@both")
    day.run("dlrm_jax report", "--data=@data")


def choose(day: Day) -> None:
    """A first model, regularized, which ends by itself; metrics by user and at a precision."""
    day.train(
        "dlrm", "data", "--patience=4", "--plateau_factor=0.5", "--dropout=0.1",
        "--table_l2=1e-6", "--unseen_rate=0.01", "--best_metric=gauc:user_id",
        "--metrics=gauc:user_id,recall_at_precision:0.5,calibration_error:10,calibration_by:device",
    )  # fmt: skip


def attend(day: Day) -> None:
    """DIN, whose history shares the vocabulary of the items, and DIN whose history does not."""
    for name, data in (("din", "data"), ("din_alone", "alone")):
        day.train(
            name, data, "--model=din", "--model_options=target=item_id", "--top_mlp=64,32,1",
            "--metrics=gauc:user_id",
        )  # fmt: skip


def two_labels(day: Day) -> None:
    """Clicks and purchases in one model, and a loss that orders the items of a request."""
    day.train("mmoe", "both", "--model=mmoe")
    day.train("esmm", "both", "--model=esmm", "--best_metric=purchased/auc")
    by_request = ("--loss=listwise:request_id", "--metrics=gauc:user_id")
    day.train("listwise", "data", *by_request, probabilities=False)


def search(day: Day) -> None:
    """A search of settings; the best ones as a file."""
    space = "--space=learning_rate=0.003..0.03:log,embedding_dim=8|16"
    day.run(
        "dlrm_jax search", "--mesh=1x1", "--data=@data", "--output=@search", space,
        f"--trials={FLAGS.trials}", "--batch_size=512", "--optimizer=adam",
        f"--epochs={FLAGS.epochs}",
    )  # fmt: skip
    day.run(
        "dlrm_jax train", "--mesh=1x1", "--data=@data", "--workdir=@runs/best",
        "--config=@search/best.json",
    )  # fmt: skip
    day.note("best", day.summary("best")["test"])


def use(day: Day) -> None:
    """Predictions of the newest day, and a page on the model."""
    new = f"--data={day.logs(range(DAYS - 1, DAYS))}"
    day.run(
        "dlrm_jax predict", "--checkpoint=@runs/din", new, "--output=@predicted.parquet",
        "--keys=user_id,request_id,item_id",
    )  # fmt: skip
    day.run("dlrm_jax report", "--run=@runs/din", "--data=@data")


def retrieve(day: Day) -> None:
    """Two towers, which find items among all of them."""
    day.run(
        "experiments.two_tower", "--mesh=1x1", "--data=@data", "--workdir=@runs/retrieval",
        "--user_columns=user_id,last_viewed,device", "--item_columns=item_id,category",
        "--batch_size=64",
    )  # fmt: skip


def go_on(day: Day) -> None:
    """The next day: grown vocabularies, a model that goes on; then a loop over days."""
    day.run(
        "dlrm_jax preprocess", f"--input=@log/day_{DAYS - 2}.parquet",
        f"--test=@log/day_{DAYS - 1}.parquet", "--schema=@log/schema.json", "--grow=@data",
        "--output=@next",
    )  # fmt: skip
    day.run(
        "dlrm_jax train", "--mesh=1x1", "--data=@next", "--workdir=@runs/next",
        "--continue_from=@runs/din", "--epochs=1",
    )  # fmt: skip
    found = day.summary("next")
    before: Any = found["before"]
    day.note("next, before", before["test"], DAYS - 1)
    day.note("next", found["test"], DAYS - 1)
    day.run(
        "dlrm_jax days", "--mesh=1x1", f"--input={day.logs(range(3))}", "--schema=@log/schema.json",
        "--workdir=@runs/days", "--optimizer=adam", "--learning_rate=0.003", "--batch_size=512",
    )  # fmt: skip


STEPS: tuple[Callable[[Day], None], ...] = (
    make_log, prepare, choose, attend, two_labels, search, use, retrieve, go_on
)  # fmt: skip


if __name__ == "__main__":
    run(main)

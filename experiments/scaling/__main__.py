"""Trains models of several sizes: how does quality grow with compute?

    python -m experiments.scaling --workdir=runs/scaling
    python -m experiments.scaling --models=dlrm,wukong --seeds=3 --workdir=runs/scaling

DLRM, Wukong and RankMixer are trained on examples whose label depends on many products of ids, HSTU
on sessions with a planted order. Both are generated, so the best possible normalized entropy is
known, and each model's excess over it is shown: over the operations of a training step, as width
and depth grow together, and as width, depth, the rows of tables or the length of histories grow
alone. A power law is fitted to the first. All sizes of a model have the same samples, one epoch,
and the learning rate that is best for the middle size. It prints tables, and writes ``cells.csv``
and ``scaling.png`` to the workdir. If it is interrupted, run the same command again to resume.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, chosen_workdir, define_workdir, refuse_unless
from dlrm_jax.cli.pictures import save
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.text_table import text_table
from dlrm_jax.training.record import owned
from experiments.scaling.findings import (
    LAW_HEADER,
    SIZE_HEADER,
    cells_csv,
    law_row,
    size_rows,
)
from experiments.scaling.picture import draw
from experiments.scaling.sizes import MODELS, is_of_sequences
from experiments.scaling.study import find

flags.DEFINE_list("models", ",".join(MODELS), "Models to train; such as dlrm,hstu.")
flags.DEFINE_integer("seeds", 2, "Trainings of each size, with other initial values; such as 3.", 1)
flags.DEFINE_integer(
    "examples", 200_000, "Training examples of the ranking models; such as 1000000.", 1024
)
flags.DEFINE_integer("users", 12_000, "Users whose sessions HSTU is trained on; such as 20000.", 64)
flags.DEFINE_bool("quick", False, "Trains the two smallest sizes of each model alone.")
define_workdir("Directory of results and picture", "runs/scaling")


def main() -> None:
    """Chooses rates, trains all sizes, fits, prints and draws."""
    unknown = [name for name in FLAGS.models if name not in MODELS]
    if unknown or not FLAGS.models:
        raise UserError(f"--models: expected some of {', '.join(MODELS)}, got {FLAGS.models}")
    if len(set(FLAGS.models)) < len(FLAGS.models):
        raise UserError(f"--models: expected each model once, got {','.join(FLAGS.models)}")
    for flag, of_sequences in (("users", True), ("examples", False)):
        readers = [name for name in MODELS if is_of_sequences(name) == of_sequences]
        refuse_unless(set(readers) & set(FLAGS.models), f"--models={','.join(readers)}", flag)
    workdir = chosen_workdir("scaling")
    mesh = start("1x1")
    with owned(workdir, "cells"):
        status(f"workdir {workdir}")
        findings = [
            find(
                name,
                FLAGS.users if is_of_sequences(name) else FLAGS.examples,
                FLAGS.seeds,
                FLAGS.quick,
                mesh,
                workdir / "cells",
            )
            for name in FLAGS.models
        ]
        for each in findings:
            status(text_table(SIZE_HEADER, size_rows(each), left=(0, 1)))
        status(text_table(LAW_HEADER, [law_row(each) for each in findings]))
        text = cells_csv(findings)
        _print_replaced(workdir / "cells.csv", text)
        write_text(workdir / "cells.csv", text)
        save(draw(findings), str(workdir / "scaling.png"))


def _print_replaced(path: Path, text: str) -> None:
    """Prints of which models the results of an earlier study in this workdir are gone."""
    if not path.exists():
        return
    earlier, new = ([x.rpartition(",")[0] for x in each.splitlines()[1:]]  # whatever the seconds
                    for each in (path.read_text(encoding="utf-8"), text))  # fmt: skip
    if gone := [line.partition(",")[0] for line in earlier if line not in new]:
        models = ", ".join(dict.fromkeys(gone))
        status(
            f"cells.csv and scaling.png replace those of another study, with {len(gone)} results "
            f"of {models}; its cells stay in cells/"
        )


if __name__ == "__main__":
    run(main)

"""Compares models: the same data, tables, batches and steps for each.

    python -m experiments.compare --models=all --seeds=3 --workdir=runs/compare
    python -m experiments.compare --models=dlrm,dcn --optimizers=sgd,adagrad --workdir=runs/figure5
    python -m experiments.compare --data=train.txt --batch_size=128 --epochs=5 --workdir=runs/real

The learning rate of each model and optimizer is searched on the validation split (see
`experiments.compare.trials`). Test metrics are means over seeds, ± their standard deviation.
Without ``--data``, examples are generated, and the AUC of the teacher that made them is the best
there is; ``--teacher=additive`` makes them without interactions. The second command is figure 5 of
the DLRM paper. ``dcn_v2:rank=8:layers=2`` is a model with its options. If it is interrupted, run
the same command with the same workdir again to resume. Trials of a class or loss ``MODULE:NAME``
are done again when its module has changed, or what that imports of yours.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.datasets import check_data_flags, define_data_flag
from dlrm_jax.cli.flags import FLAGS, refuse, refuse_unless
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.presets import preset
from dlrm_jax.run_data import load_data
from dlrm_jax.training.build import check_config
from experiments.compare.contest import asked, compare, define_comparison_flags, locked_workdir
from experiments.compare.tasks import Clicks

define_comparison_flags("comparison")
define_data_flag()
flags.DEFINE_string(
    "split", None, "Rule by which a raw file is split, see preprocess; such as rows=split.txt."
)


def main() -> None:
    """Reads contenders and data, then runs the trials."""
    check_data_flags()
    refuse_unless(FLAGS.data, "--data", "split")
    if FLAGS.data and Path(FLAGS.data).is_dir():
        refuse(["split"], "with a directory: it was prepared with its own")
    mesh = start(FLAGS.mesh)
    contenders, config = asked(preset(FLAGS.preset))
    with locked_workdir("compare") as directory:
        check_config(config, mesh)
        config, data = load_data(config, FLAGS.data, FLAGS.split or "")
        compare(contenders, config, Clicks(data), mesh, directory)


if __name__ == "__main__":
    run(main)

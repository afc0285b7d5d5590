"""Compares models: the same data, tables, batches and steps for each.

    python -m experiments.compare --models=all --seeds=3 --workdir=runs/compare
    python -m experiments.compare --models=dlrm,dcn --optimizers=sgd,adagrad --workdir=runs/figure5
    python -m experiments.compare --data=train.txt --batch_size=128 --epochs=5 --workdir=runs/real

For each model and optimizer the learning rate is searched on the validation split (see
`experiments.trials`); test metrics are means over seeds, ± their standard deviation. Without
``--data``, examples are generated, and the AUC of the teacher that made them is the best there is;
``--teacher=additive`` makes them without interactions. The second command is figure 5 of the DLRM
paper. Every field of `dlrm_jax.config.Config` is a flag; ``dcn_v2:rank=8:layers=2`` is a model with
its options. Interrupted, the same command with the same workdir goes on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dlrm_jax.cache import cache_directory
from dlrm_jax.config import Config, preset
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.dataset import load_dataset
from dlrm_jax.data.files import write_text
from dlrm_jax.errors import UserError
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.training.build import check_batch_sizes, generate_data
from dlrm_jax.training.model import model_class
from dlrm_jax.training.record import owned, to_json
from experiments.comparison_page import COLUMNS, rows_of, write_page
from experiments.program import FLAGS, define_run_flags, run, start, with_flags
from experiments.trials import RATES, Contender, Result, Study

define_run_flags(default_preset="comparison")
flags.DEFINE_string("data", None, "a raw Criteo file, or a directory of prepared arrays; "
                    "without it, examples are generated")  # fmt: skip
flags.DEFINE_list("models", ["dlrm", "dcn"], "names, with options behind colons; or all, which "
                  "leaves out ncf and din: they need other inputs")  # fmt: skip
flags.DEFINE_list("optimizers", ["rowwise_adagrad"], "of tables and dense models")
flags.DEFINE_list("learning_rates", [], "to search over; by default three for each optimizer")
flags.DEFINE_integer("seeds", 3, "trials with the chosen learning rate", lower_bound=1)
flags.DEFINE_integer("evaluations", 10, "of each trial", lower_bound=1)
flags.DEFINE_string("workdir", None, "of trials, pictures and the page; without it, a new one in "
                    "runs/")  # fmt: skip

# What the contenders themselves decide.
_THEIRS = ("model", "model_options", "optimizer", "learning_rate", "seed")
_NEED_OTHER_INPUTS = ("ncf", "din")


def main(argv: Sequence[str]) -> None:
    """Data, contenders, trials, table, page."""
    del argv
    config = with_flags(preset(FLAGS.preset))
    contenders, rates = asked()
    for each in contenders:  # before the data, which may take long
        model_class(each.config(config, 1.0, 0))
    mesh = start(FLAGS.mesh)
    check_batch_sizes(config, mesh)
    config, data = load_data(config)
    directory = Path(FLAGS.workdir or time.strftime("runs/compare-%Y%m%d-%H%M%S"))
    print(f"{data.source}\nworkdir {directory}")
    with owned(directory):
        study = Study(config, data, mesh, FLAGS.evaluations, directory / "trials")
        report(study.run(contenders, rates, FLAGS.seeds), data, directory)


def asked() -> tuple[list[Contender], dict[str, tuple[float, ...]]]:
    """The contenders of the flags, and the learning rates to search over.

    Raises:
        UserError: a flag that the contenders decide was given, or a name is unknown.
    """
    for name in _THEIRS:
        if FLAGS[name].present:
            raise UserError(f"--{name} has no effect: --models, --optimizers, --learning_rates and "
                            f"--seeds decide")  # fmt: skip
    models = FLAGS.models
    if models == ["all"]:
        models = [name for name in MODELS if name not in _NEED_OTHER_INPUTS]
    unknown = [name for name in FLAGS.optimizers if name not in RATES]
    if unknown or not FLAGS.optimizers or not models:
        raise UserError(
            f"expected --models and --optimizers, of {', '.join(RATES)}; got {models} and "
            f"{FLAGS.optimizers}"
        )
    try:
        given = tuple(map(float, FLAGS.learning_rates))
    except ValueError:
        raise UserError(
            f"--learning_rates: expected numbers, got {','.join(FLAGS.learning_rates)!r}"
        ) from None
    rates = {name: given or RATES[name] for name in FLAGS.optimizers}
    return [Contender(model, name) for model in models for name in FLAGS.optimizers], rates


def load_data(config: Config) -> tuple[Config, Dataset]:
    """The data, and the config with the tables that it needs."""
    if not FLAGS.data:
        return config, generate_data(config)
    for flag in ("table_rows", "bag_lengths", "dense_features", "examples", "zipf_exponent",
                 "teacher"):  # fmt: skip
        if FLAGS[flag].present:
            raise UserError(f"--{flag} has no effect with --data: the data decide")
    data = load_dataset(Path(FLAGS.data), cache_directory() / "criteo", config.min_count)
    for name, split in data.splits.items():
        check_ids(split, data.table_rows, data.bag_lengths, name)
    return dataclasses.replace(
        config,
        table_rows=data.table_rows,
        bag_lengths=data.bag_lengths,
        dense_features=data.train.dense_features,
    ), data


def report(results: Sequence[Result], data: Dataset, directory: Path) -> None:
    """The table, the page, and all numbers as JSON."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows_of(results), strict=True)]
    for row in (COLUMNS, *rows_of(results)):
        cells = (cell.ljust(w) if i < 2 else cell.rjust(w)
                 for i, (cell, w) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        print("  ".join(cells))
    if data.teacher_auc:
        print(f"the teacher's test AUC, the best that can be expected: "
              f"{data.teacher_auc['test']:.4f}")  # fmt: skip
    everything = {"data": data.source, "results": [dataclasses.asdict(each) for each in results]}
    write_text(directory / "results.json", to_json(everything, indent=1))
    write_page(results, data, directory / "comparison.html")
    print(f"see {directory}/comparison.html, results.json")


if __name__ == "__main__":
    run(main)

"""Flags and results that the programs for comparing models share."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from jax.sharding import Mesh

from dlrm_jax.cli.program import FLAGS, check_read, overridden
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.record import owned, to_json
from experiments.compare.results_page import columns, rows_of, write_page
from experiments.compare.tasks import Task
from experiments.compare.trials import RATES, Contender, Result, Study

# What the contenders themselves decide.
_THEIRS = ("model", "model_options", "optimizer", "learning_rate", "seed")
_OF_SINGLE_RUNS = (
    "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "best_metric", "target_auc"
)  # fmt: skip
_NEED_OTHER_INPUTS = ("ncf", "din")


def define_comparison_flags(models: str = "dlrm,dcn", optimizers: str = "rowwise_adagrad") -> None:
    """Who competes, and how often; beside the flags of the config."""
    flags.DEFINE_list("models", models, "names, with options behind colons; or all, which leaves "
                      "out ncf and din: they need other inputs")  # fmt: skip
    flags.DEFINE_list("optimizers", optimizers, "of tables and dense models")
    flags.DEFINE_list("learning_rates", [], "to search over; by default three for each optimizer")
    flags.DEFINE_integer("seeds", 3, "trials with the chosen learning rate", lower_bound=1)
    flags.DEFINE_integer("evaluations", 10, "of each trial", lower_bound=1)
    flags.DEFINE_string("workdir", None, "of trials, pictures and the page; without it, a new one "
                        "in runs/")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Contest:
    """The contenders and their trials.

    Attributes:
        contenders: contenders in the order of the table.
        rates: learning rates to search over, by optimizer.
        seeds: number of seeds of each contender.
        evaluations: number of evaluations of each trial.
    """

    contenders: Sequence[Contender]
    rates: dict[str, tuple[float, ...]]
    seeds: int
    evaluations: int


def asked(base: Config) -> tuple[Contest, Config]:
    """Reads the contest and the common config from the flags.

    Args:
        base: the preset.

    Raises:
        UserError: a flag has no effect because the contenders decide or no contender reads it, or
            a name is unknown.
    """
    for name in _OF_SINGLE_RUNS:
        if FLAGS[name].present:
            raise UserError(f"--{name} has no effect: --evaluations decides")
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
            f"expected --models, and --optimizers of {', '.join(RATES)}; got {','.join(models)!r} "
            f"and {','.join(FLAGS.optimizers)!r}"
        )
    try:
        given = tuple(map(float, FLAGS.learning_rates))
    except ValueError:
        raise UserError(
            f"--learning_rates: expected numbers, got {','.join(FLAGS.learning_rates)!r}"
        ) from None
    contenders = [Contender(model, name) for model in models for name in FLAGS.optimizers]
    # In the shape of the first one: what the preset's own model demands may be wrong for all.
    config = overridden(dataclasses.replace(base, model=contenders[0].model, model_options=()))
    check_read([each.config(config, 1.0, 0) for each in contenders])
    rates = {name: given or RATES[name] for name in FLAGS.optimizers}
    return Contest(contenders, rates, FLAGS.seeds, FLAGS.evaluations), config


@contextlib.contextmanager
def held(program: str) -> Iterator[Path]:
    """Context that makes the workdir of the flags and locks it for this run.

    Args:
        program: name of the program, part of the default workdir.

    Yields:
        The workdir.
    """
    directory = Path(FLAGS.workdir or time.strftime(f"runs/{program}-%Y%m%d-%H%M%S"))
    with owned(directory):
        print(f"workdir {directory}")
        yield directory


def compare(contest: Contest, config: Config, task: Task, mesh: Mesh, directory: Path) -> None:
    """Runs the missing trials, prints the table, and writes the page and all numbers.

    Args:
        contest: contenders and trials.
        config: config of all trials, with the tables of the data.
        task: data and metrics.
        mesh: mesh to run on.
        directory: directory for the results.
    """
    print(task.data.source)
    for each in contest.contenders:  # errors of any contender come before the trials
        make_learner(each.config(config, 1.0, 0), mesh)
    study = Study(config, task, mesh, contest.evaluations, directory / "trials")
    results = study.run(contest.contenders, contest.rates, contest.seeds)
    _print_table([columns(task), *rows_of(results, task)])
    best = task.data.teacher_auc
    if best:
        print(f"the teacher's test AUC, the best that can be expected: {best['test']:.4f}")
    _print_distances(results, task)
    everything = {"data": task.data.source, "results": [dataclasses.asdict(r) for r in results]}
    write_text(directory / "results.json", to_json(everything, indent=1))
    write_page(results, task, directory / "comparison.html")
    print(f"see {directory}/comparison.html, results.json")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(cells)))


def _print_distances(results: Sequence[Result], task: Task) -> None:
    """Prints the distance of each model from logistic regression, if that is among them."""
    metric = "auc" if "auc" in task.shown else task.chosen_by
    linear = [r for r in results if r.contender.name == "logistic_regression"]
    others = [r for r in results if r.contender.name != "logistic_regression"]
    for base in linear:
        for each in others:
            if each.contender.optimizer == base.contender.optimizer:
                print(
                    f"{each.contender.name}, {each.contender.optimizer}: test {metric} "
                    f"{each.mean(metric) - base.mean(metric):+.4f} from logistic regression's"
                )

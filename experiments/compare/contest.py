"""Flags and results that the programs for comparing models share."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags
from jax.sharding import Mesh

from dlrm_jax.cli.config_flags import check_read, define_run_flags, overridden
from dlrm_jax.cli.flags import FLAGS, chosen_workdir, define_numbers, define_workdir
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import check_table_settings, make_learner
from dlrm_jax.training.model import options
from dlrm_jax.training.record import owned, to_json
from dlrm_jax.training.source_hash import source_hashes
from experiments.compare.bounds import bounds
from experiments.compare.results_page import Limits, columns, rows_of, write_page
from experiments.compare.tasks import Task
from experiments.compare.trials import RATES, Contender, Result, Study

_NO_EFFECT = {
    **dict.fromkeys(
        ("model", "model_options", "optimizer", "learning_rate", "seed"),
        "--models, --optimizers, --learning_rates and --seeds decide",
    ),
    **dict.fromkeys(
        ("log_every", "eval_every", "checkpoint_every", "check_copies_every", "keep_checkpoints",
         "best_metric", "target_auc", "patience", "plateau_factor", "plateau_patience",
         "validation_examples", "metrics"),
        "--evaluations decides",
    ),
}  # fmt: skip
_EVERY_OTHER = "all"


def define_comparison_flags(
    default_preset: str, without: Mapping[str, str] | None = None, models: str = "dlrm,dcn"
) -> None:
    """Flags of the contenders and their trials, and those of the config.

    ``without`` has further flags that the program refuses, and why; ``models`` is the default of
    ``--models``.
    """
    define_run_flags(default_preset, {**_NO_EFFECT, **(without or {})})
    flags.DEFINE_list(
        "models",
        models,
        "Models, with options behind colons; all adds every other one, but ncf, which needs two "
        "features, and those of a history if there is none; such as dlrm,dcn_v2:rank=8.",
    )
    flags.DEFINE_list(
        "optimizers", "rowwise_adagrad", "Optimizers of tables and dense models; such as sgd,adam."
    )
    rates = "Learning rates to search over; without it, three for each optimizer; such as 0.01,0.1."
    define_numbers("learning_rates", (), rates, float)
    flags.DEFINE_integer("seeds", 3, "Trials with the chosen learning rate; such as 5.", 1)
    flags.DEFINE_integer("evaluations", 10, "Evaluations of each trial; such as 20.", 1)
    define_workdir("Directory of trials, pictures and the page", "runs/compare")


def asked(base: Config) -> tuple[list[Contender], Config]:
    """Reads the contenders and their common config from the flags, on top of a preset.

    Raises:
        UserError: a flag has no effect because the contenders decide or no contender reads it, or
            a name is unknown or there twice, or a learning rate isn't positive.
    """
    plain = dataclasses.replace(base, model="logistic_regression", model_options=())
    models = _named(FLAGS.models, overridden(plain))
    unknown = [name for name in FLAGS.optimizers if name not in RATES]
    if unknown or not FLAGS.optimizers or not models:
        raise UserError(
            f"expected --models, and --optimizers of {', '.join(RATES)}; got {','.join(models)!r} "
            f"and {','.join(FLAGS.optimizers)!r}"
        )
    contenders = [Contender(model, name) for model in models for name in FLAGS.optimizers]
    if twice := [str(x) for x, count in Counter(contenders).items() if count > 1]:
        raise UserError(f"--models and --optimizers name {twice[0]} twice; name it once")
    if bad := [x for x in FLAGS.learning_rates if not 0 < x < math.inf]:
        raise UserError(f"--learning_rates: expected positive, finite numbers, got {bad[0]:g}")
    kinds = [each.model for each in contenders]
    if unknown := [kind for kind in kinds if ":" not in kind and kind not in MODELS]:
        raise UserError(
            f"--models: expected some of {', '.join(MODELS)}, or MODULE:CLASS; got {unknown[0]!r}"
        )
    # In the shape of the first one: what the preset's own model demands may be wrong for all.
    config = overridden(dataclasses.replace(base, model=contenders[0].model, model_options=()))
    source_hashes([each.model for each in contenders], [config.loss])  # as they are imported
    check_read([each.config(config, 1.0, 0) for each in contenders])
    return contenders, config


def _named(names: Sequence[str], config: Config) -> list[str]:
    """The names of models with ``all`` written out for the features of a config."""
    if _EVERY_OTHER not in names:
        return list(names)
    given = {name.partition(":")[0] for name in names}
    target = _target(config)
    others = []
    for name, kind in MODELS.items():
        needs_target = "target" in options(kind)
        if name in given or name == "ncf" or (needs_target and target is None):
            continue
        others.append(f"{name}:target={target}" if needs_target else name)
    named = (others if name == _EVERY_OTHER else [name] for name in names)
    return list(itertools.chain.from_iterable(named))


def _target(config: Config) -> str | None:
    """The feature that the first history is asked about: of one id, and of as many rows."""
    fields = list(zip(config.table_names, config.table_rows, config.table_bag_lengths, strict=True))
    for _, rows, length in fields:
        if length > 1:
            return next((name for name, *own in fields if own == [rows, 1]), None)
    return None


@contextlib.contextmanager
def locked_workdir(program: str) -> Iterator[Path]:
    """Makes and locks the workdir of the flags, by default a new one of the program's name."""
    directory = chosen_workdir(program)
    with owned(directory, "results.json"):
        print(f"workdir {directory}")
        yield directory


def compare(
    contenders: Sequence[Contender], config: Config, task: Task, mesh: Mesh, directory: Path
) -> tuple[list[Result], Limits]:
    """Runs the missing trials, prints the table, and writes the page and all numbers.

    Returns:
        The results, and what bounds them.
    """
    check_table_settings(config)  # now that it has the tables of the data
    print(task.data.source)
    for name, split in task.data.splits.items():
        if not len(split):
            raise UserError(
                f"a comparison chooses by validation and reports test, but there are no examples "
                f"for {name}"
            )
    for each in contenders:  # errors of any contender come before the trials
        make_learner(each.config(config, 1.0, 0), mesh)
    study = Study(config, task, mesh, FLAGS.evaluations, directory / "trials")
    rates = {name: FLAGS.learning_rates or RATES[name] for name in FLAGS.optimizers}
    results = study.run(contenders, rates, FLAGS.seeds)
    limits = bounds(config, task)
    print(text_table(columns(task), rows_of(results, task, limits), left=(0, 1)))
    for name, metrics in limits.items():
        ranked, entropy = metrics[task.ranked_by], metrics["normalized_entropy"]
        print(f"best possible test AUC, that of {name}: {ranked:.4f}, with an NE of {entropy:.4f}")
    _print_distances(results, task)
    everything = {"data": task.data.source, "results": [dataclasses.asdict(r) for r in results]}
    text = to_json(everything, indent=1)
    _print_replaced(directory / "results.json", text)
    write_text(directory / "results.json", text)
    write_page(results, task, limits, directory / "comparison.html")
    print(f"see {directory}/comparison.html, results.json")
    return results, limits


def _print_replaced(path: Path, text: str) -> None:
    """Prints which results of an earlier comparison in this workdir a new file doesn't have."""
    try:
        earlier, new = json.loads(path.read_text()), json.loads(text)
        gone = [each["contender"]["name"] for each in earlier["results"]
                if earlier["data"] != new["data"] or each not in new["results"]]  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError):  # there is none
        return
    if gone:
        print(
            f"results.json and comparison.html replace those of another comparison, with its "
            f"results of {', '.join(gone)}; its trials stay in trials/"
        )


def _print_distances(results: Sequence[Result], task: Task) -> None:
    """Prints the distance of each model from logistic regression, if that is among them."""
    metric = task.ranked_by
    linear = {
        each.contender.optimizer: each.mean(metric)
        for each in results
        if each.contender.name == "logistic_regression"
    }
    for each in results:
        base = linear.get(each.contender.optimizer)
        if base is not None and each.contender.name != "logistic_regression":
            distance = each.mean(metric) - base
            print(f"{each.contender}: test {metric} {distance:+.4f} from logistic regression's")

r"""Searches the settings of a model by validation, and writes the best ones as a file.

    python -m dlrm_jax search --space='learning_rate=0.001..0.1:log,embedding_dim=8|16|32' \
        --data=log --output=searches/log --trials=50
    python -m dlrm_jax train --data=log --config=searches/log/best.json --workdir=runs/best

A trial is a run of ``dlrm_jax train`` on the same data with other values. --best_metric of the
validation split decides; the test split isn't read. Trials that are worse than the median of the
others at an evaluation (--eval_every) are ended there. All other flags are those of train, and hold
for every trial. If the command is interrupted, run it again to resume. Run it several times at
once, or with --jobs, for trials in parallel.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.config_file import check_file_read, config_of_flags, define_config_file
from dlrm_jax.cli.config_flags import check_read, define_run_flags
from dlrm_jax.cli.datasets import OF_GENERATED, check_data_flags, define_data_flag
from dlrm_jax.cli.flags import FLAGS, mark_required, refuse, require
from dlrm_jax.cli.launch import end_with_launcher, is_launched, launch_jobs
from dlrm_jax.cli.search_page import printed, reasons, write_page, write_tables
from dlrm_jax.cli.start import start
from dlrm_jax.config import FIELD_TYPES, MAY_CHANGE, Config
from dlrm_jax.console import status
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.run_data import load_data
from dlrm_jax.saved_config import file_text
from dlrm_jax.search.corners import valid_corners
from dlrm_jax.search.grammar import parse_space
from dlrm_jax.search.identity import Identity, sources_of
from dlrm_jax.search.space import Space, described
from dlrm_jax.search.store import check_directory
from dlrm_jax.search.study import Study
from dlrm_jax.search.trials import Setting, run_trials
from dlrm_jax.training.config_data import check_shared, for_data
from dlrm_jax.training.metrics import higher_is_better
from dlrm_jax.training.model import unread

define_run_flags(default_preset="small")
define_config_file()
define_data_flag()
flags.DEFINE_string(
    "space",
    None,
    "Settings to search, with commas between them: NAME=LOW..HIGH, with :log if the logarithm is "
    "to be drawn evenly, or NAME=VALUE|VALUE; such as "
    "learning_rate=0.001..0.1:log,embedding_dim=8|16|32,optimizer=adam|rowwise_adagrad.",
)
flags.DEFINE_string(
    "output", None, "Directory of the search, new or to be gone on with; such as searches/log."
)
flags.DEFINE_integer(
    "trials", 20, "Trials in all, those of earlier and other processes included; such as 50.", 1
)
flags.DEFINE_enum(
    "sampler",
    "tpe",
    ["tpe", "random"],
    "How values are chosen: tpe looks near good ones, after ten trials at random.",
)
flags.DEFINE_bool("prune", True, "Ends trials that are worse than the median at an evaluation.")
flags.DEFINE_bool(
    "workdirs",
    True,
    "Gives each trial a directory in OUTPUT/trials, with its metrics and, until it ends, the "
    "checkpoints from which it resumes. Without, a trial that is interrupted begins anew.",
)
flags.DEFINE_integer(
    "jobs",
    1,
    "Processes that run trials at the same time, on this machine's CPUs; such as 2.",
    lower_bound=1,
)
mark_required("space", "output")

# What may differ when a search goes on: it changes no result.
_MAY_DIFFER = MAY_CHANGE & {
    "placements", "plan", "kernels", "evaluation_batch_size", "log_every", "checkpoint_every",
    "check_copies_every", "keep_checkpoints", "pipelined",
}  # fmt: skip


def main() -> None:
    """Space, mesh, data, then the trials; at the end the table, the page and the best config."""
    require("space", "output")
    space, output = parse_space(FLAGS.space), Path(FLAGS.output)
    refuse([name for name in space.names if name in FIELD_TYPES], "with --space, which sets it")
    config = base_config(space)
    check_data_flags()
    check_directory(output)
    is_better = higher_is_better(config.best_metric)
    if FLAGS.jobs > 1 and not is_launched():
        codes = launch_jobs(FLAGS.jobs)
        is_done = 0 in codes and report(Study(output, space, None, is_better), config)
        sys.exit(0 if is_done else max(codes))
    if is_launched():
        end_with_launcher()
    mesh = start(FLAGS.mesh)
    if mesh.size == 1:
        refuse(["check_copies_every"], "on a mesh of one device, which has no copies")
    sources = sources_of(config, space)  # as they are imported
    configs = valid_corners(space, config, mesh)
    if configs:
        check_read(configs)
        check_file_read(configs)
    status(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    # Of all losses that are tried, the first takes the fewest labels; of all models, the second
    # the most.
    first = {"loss": "bce", "model": "shared_bottom"}
    of_all = {name: value for name, value in first.items() if name in space.names}
    _, data = load_data(dataclasses.replace(config, **of_all), FLAGS.data)
    with_data = for_data(config, data)
    check_data(with_data, data)
    status(data.source)
    identity = Identity(
        data.fingerprint, decisive(config, space), data.earlier_fingerprints, sources
    )
    study = Study(output, space, identity, is_better, FLAGS.sampler, FLAGS.prune, config.seed)
    status(f"{FLAGS.trials} trials of {', '.join(space.names)}; see {output}")
    if space.follows(config):
        status("bottom_mlp: its last width is each trial's embedding_dim")
    steps = config.steps or config.epochs * (len(data.train) // config.batch_size)
    if FLAGS.prune and not 0 < config.eval_every < steps:
        status(
            f"no trial is pruned: each is evaluated at its end alone, after {steps} steps; with "
            f"--eval_every={max(1, steps // 10)} it would be on the way, too"
        )
    setting = Setting(with_data, data, FLAGS.data, mesh, FLAGS.workdirs)
    run_trials(study, setting, FLAGS.trials, status)
    if not is_launched():
        report(study, config)


def check_data(config: Config, data: Dataset) -> None:
    """Checks, before the first trial, that data suit a search.

    Raises:
        UserError: a split that each trial needs has no examples; see also `check_shared`.
    """
    for name, use in (("train", "train"), ("validation", "choose the best trial")):
        if not len(data.splits[name]):
            raise UserError(f"data: expected examples for {name}, which {use}, got none")
    check_shared(config, data)


def base_config(space: Space) -> Config:
    """The config that the trials change; its own values of their settings are any that fit."""
    errors: list[UserError] = []
    for values in [*space.corners(), {}]:
        try:
            return config_of_flags(space.fields(values))
        except UserError as error:
            errors.append(error)
    raise errors[0]


def decisive(config: Config, space: Space) -> dict[str, Any]:
    """The fields that decide results, without those of the space and those of the data."""
    others = {*_MAY_DIFFER, *space.names, *OF_GENERATED, "min_count"}
    if not FLAGS.data:
        others -= {"features"}  # initial values depend on the names
    return {x: y for x, y in dataclasses.asdict(config).items() if x not in others}


def report(study: Study, config: Config) -> bool:
    """Prints the trials, writes tables, page and the best config; returns whether all have ended.

    Raises:
        UserError: no trial has a result.
    """
    metric, space, output = config.best_metric, study.space, study.directory
    with study.shared():  # another process may end at the same time
        findings = study.findings()
        write_tables(findings, space, metric, output)
        write_page(findings, space, metric, study.importances(), output / "search.html")
        complete = [each for each in findings if each.outcome == "complete"]
        if complete:
            write_best(space.config(config, complete[0].values), output / "best.json")
    status(printed(findings, space, metric))
    if running := sum(each.outcome == "running" for each in findings):
        status(f"{running} trials run in other processes, or go on when the command is run again")
    if not complete:
        if running:
            return False
        why = next(iter(reasons(findings)), "all were pruned")
        raise UserError(f"no trial of {output} has a result; {why}")
    best = complete[0]
    status(f"best: {described(best.values)}, with validation {metric} {best.metric:.5f}")
    status(f"see {output}/best.json, trials.csv, trials.parquet, search.html; to train with it:")
    data = [f"--data={FLAGS.data}"] if FLAGS.data else []
    given = [f"--mesh={FLAGS.mesh}", *data, f"--config={output}/best.json"]
    status(f"  python -m dlrm_jax train {shlex.join(given)}")
    return not running


def write_best(config: Config, path: Path) -> None:
    """Writes a config file without what the data decide and what the config doesn't read."""
    decided = [*OF_GENERATED, "features"] if FLAGS.data else []
    if not FLAGS.data or Path(FLAGS.data).is_dir():
        decided.append("min_count")  # of the preparation of a raw file
    write_text(path, file_text(config, {*decided, *unread(config)}))

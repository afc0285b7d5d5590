r"""Trains a model that ranks the candidates of a request by the user's long history.

    python -m experiments.long_history --log=requests.parquet --history=seen:item,action \
        --candidates=item --context=country --label=clicked --workdir=runs/long
    python -m experiments.long_history --lengths=64,128,256,512,1024
    python -m experiments.long_history --max_length=2000 --eval_length=10000 --longest=10000
    python -m experiments.long_history --preset=dlrm_v3 --most_rows=20000 --requests=40 \
        --batch_size=8 --max_length=128
    python -m experiments.long_history --mesh=1x8 --target=h100:8

``--log`` is one or more Parquet files with a row for each request: lists of what the user did, and
the candidates, as lists or as single values. A column reads the table that is named behind a colon,
otherwise that of its own name. Requests are split by time, or by their order. It prints log loss,
normalized entropy, AUC and GAUC of the checkpoint that is best on validation. If the program is
interrupted, run the same command again to resume. ``--export`` makes a directory of the model,
which `dlrm_jax.requests.saved_model.read_model` reads.

Without a log it generates requests whose labels depend on the latest ``--horizon`` actions, so that
the best result is known. ``--lengths`` trains once for each length, one after the other.

With ``--target`` nothing is trained: the train step is compiled for GPUs or TPUs that needn't be
there, as ``python -m dlrm_jax compile`` does. The requests say how large a batch is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.compiled_step import (
    check_target,
    define_target,
    mesh_to_compile_for,
    report_step,
)
from dlrm_jax.cli.config_flags import define_field
from dlrm_jax.cli.exported_model import check_export, exporting
from dlrm_jax.cli.flags import (
    FLAGS,
    chosen_workdir,
    define_mesh,
    define_numbers,
    define_workdir,
    refuse,
)
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.requests.batches import RequestTraining
from dlrm_jax.requests.columns import Columns, read_columns
from dlrm_jax.requests.encoded_log import read_requests
from dlrm_jax.requests.evaluation import GAUC, metrics
from dlrm_jax.requests.mapped_log import read_vocabularies
from dlrm_jax.requests.model import learner_for
from dlrm_jax.requests.requests import Requests, Split, split_of
from dlrm_jax.requests.run import run as run_requests
from dlrm_jax.requests.saved_model import write_model
from dlrm_jax.requests.scorer import RequestScorer
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.requests.step import make_request_step
from dlrm_jax.text_table import text_table
from experiments.long_history.planted_interest import PlantedInterest, generate
from experiments.long_history.presets import PRESETS

_SHOWN = ("log_loss", "normalized_entropy", "auc", GAUC)
_GENERATED = ("requests", "shown", "horizon", "longest", "most_rows")
_OF_LOG = (
    "history", "candidates", "context", "label", "history_time", "time", "min_count",
)  # fmt: skip

define_mesh()
flags.DEFINE_list("log", [], "Parquet files, a row for each request; such as requests.parquet.")
flags.DEFINE_list(
    "history", [], "Columns of what the user did, COLUMN or COLUMN:TABLE; such as seen:item."
)
flags.DEFINE_list("candidates", [], "Columns of the candidates; such as item,category.")
flags.DEFINE_list("context", [], "Columns of the request, with single values; such as country.")
flags.DEFINE_string("label", "label", "Column of the labels, 0 or 1; such as clicked.")
flags.DEFINE_string("history_time", "", "Column of the actions' times, lists; such as seen_at.")
flags.DEFINE_string("time", "", "Column of the requests' times, seconds or dates; such as at.")
flags.DEFINE_integer(
    "min_count", 1, "Times that a value must be there to have a vector of its own; such as 5.", 1
)
flags.DEFINE_enum(
    "preset",
    "small",
    list(PRESETS),
    "Settings and generated requests that the other flags change; the defaults are those of small, "
    "and dlrm_v3 is MLPerf's HSTU.",
)
for _field in dataclasses.fields(RequestSettings):
    _default = getattr(PRESETS["small"].settings, _field.name)
    define_field(_field, get_type_hints(RequestSettings)[_field.name], _default)
define_numbers(
    "lengths", (), "Values of max_length that are trained one after the other; such as 64,512.", int
)
define_workdir("Directory of metrics and checkpoints", "runs/long")
define_target(" and nothing is trained")
flags.DEFINE_string(
    "export", None, "Directory to make of the trained model, for scoring; such as ranker."
)
flags.DEFINE_integer("requests", 3000, "Generated requests; such as 1000.", 20)
flags.DEFINE_integer(
    "shown", PRESETS["small"].shown, "Candidates of a generated request; such as 100.", 1
)
flags.DEFINE_integer(
    "horizon", 512, "Latest actions that decide a generated label; such as 2000.", 8
)
flags.DEFINE_integer(
    "longest", PRESETS["small"].longest, "Longest generated history; such as 10000.", 8
)
flags.DEFINE_integer(
    "most_rows", None, "Most rows of a table, to cut a preset to this machine; such as 100000.", 16
)


def main() -> None:
    """Settings, requests, split, then what `dlrm_jax.requests.run.run` does for each length."""
    check_flags()
    workdir, (settings, *others) = chosen_workdir("long_history"), settings_of_flags()
    mesh = mesh_to_compile_for() if FLAGS.target else start(FLAGS.mesh)
    if FLAGS.export:
        check_export(workdir)
    check_batch_size(mesh, "batch_size", settings.batch_size)
    status(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    planted = log = None
    if FLAGS.log:
        paths = [Path(x) for x in FLAGS.log]
        log = read_requests(
            paths, columns_of_flags(), workdir / "requests", FLAGS.min_count, status
        )
        requests, split = log.requests, log.split
    else:
        planted = generated(settings.seed)
        requests = planted.requests
        assert requests.times is not None
        split = split_of(requests.times)
    status(describe(requests, split))
    if FLAGS.target:
        batches = RequestTraining(requests, split.train, settings, mesh.size)
        learner = learner_for(requests.columns, requests.rows, batches.shapes, settings, mesh)
        batch = batches[0]
        report_step(learner, make_request_step(learner), batch, batch.ids.size)
        return
    status(f"workdir {workdir}")
    found = {}
    for own in (settings, *others):
        directory = workdir / f"length_{own.max_length}" if FLAGS.lengths else workdir
        outcome = run_requests(requests, split, own, mesh, directory, status)
        name = f"{own.encoder} {own.max_length}"
        if own.evaluated_length != own.max_length:
            name += f", evaluated at {own.evaluated_length}"
        found[name] = outcome.summary
        status(row_of(name, outcome.summary["test"]))
        if FLAGS.export:
            scorer = RequestScorer.of_state(outcome.learner, requests.columns, own, outcome.state)
            known = read_vocabularies(log.directory, requests.columns) if log else None
            with exporting(workdir) as path:
                write_model(path, scorer, known)
            status(f"exported to {FLAGS.export}")
    report(found, None if planted is None else best_of(planted, split), workdir)


def check_flags() -> None:
    """Refuses flags that contradict each other or that nothing would read."""
    check_target()
    if FLAGS.target:
        refuse(["export", "lengths"], "with --target, for which nothing is trained")
    if FLAGS.target and not FLAGS.log:  # a log's encoded columns are written there
        refuse(["workdir"], "with --target, for which nothing is trained")
    if FLAGS.log:
        refuse(_GENERATED, "with --log, which has requests")
    else:
        refuse(_OF_LOG, "without --log")
    if FLAGS.lengths:
        refuse(["max_length"], "with --lengths, which are its values")
        refuse(["export"], "with --lengths, which trains several models")
    if settings_of_flags()[0].encoder == "mean":
        refuse(["layers", "heads"], "with --encoder=mean, which has none")


def settings_of_flags() -> list[RequestSettings]:
    """The settings, which are flags each, of all lengths that are trained."""
    preset = PRESETS[FLAGS.preset].settings
    given: dict[str, Any] = {}
    for name in (x.name for x in dataclasses.fields(RequestSettings)):
        value = FLAGS[name].value
        if FLAGS[name].present:
            given[name] = tuple(value) if isinstance(value, list) else value
    lengths = FLAGS.lengths or [given.pop("max_length", preset.max_length)]
    return [dataclasses.replace(preset, **given, max_length=x) for x in lengths]


def generated(seed: int) -> PlantedInterest:
    """Requests of the preset and the flags."""
    preset = PRESETS[FLAGS.preset]
    rows = {name: min(x, FLAGS.most_rows or x) for name, x in preset.rows.items()}
    return generate(
        FLAGS.requests,
        FLAGS.shown if FLAGS["shown"].present else preset.shown,
        FLAGS.horizon,
        FLAGS.longest if FLAGS["longest"].present else preset.longest,
        seed,
        preset.shortest,
        rows,
    )


def columns_of_flags() -> Columns:
    """The columns of the log."""
    parts: list[Any] = [FLAGS[name].value for name in _OF_LOG[:3]]
    return Columns(
        *(read_columns(name, part) for name, part in zip(_OF_LOG[:3], parts, strict=True)),
        label=FLAGS.label,
        history_time=FLAGS.history_time,
        time=FLAGS.time,
    )


def describe(requests: Requests, split: Split) -> str:
    """One line: requests, candidates, histories, parts."""
    lengths = requests.lengths
    sizes = (f"{name} {len(x):,}" for name, x in split._asdict().items())
    return (
        f"{len(requests):,} requests with a mean of {requests.counts.mean():.1f} candidates and "
        f"histories of {lengths.mean():.0f} actions, at most {lengths.max():,}; {', '.join(sizes)}"
    )


def best_of(planted: PlantedInterest, split: Split) -> dict[str, Any]:
    """The metrics of the planted probabilities on the test split."""
    requests = planted.requests
    places = requests.candidates_of(split.test)
    counts = requests.counts[split.test]
    return metrics(planted.logits[places], requests.labels[places], counts)


def row_of(name: str, found: dict[str, Any]) -> str:
    """One line: a model's metrics on the test split."""
    return f"{name}: " + ", ".join(f"{x} {found[x]:.4f}" for x in _SHOWN)


def report(
    summaries: dict[str, dict[str, Any]], planted: dict[str, Any] | None, workdir: Path
) -> None:
    """Prints the metrics of the test split."""
    rows = [[name, *(f"{x['test'][y]:.4f}" for y in _SHOWN)] for name, x in summaries.items()]
    if planted:
        rows.append(["planted interest", *(f"{planted[x]:.4f}" for x in _SHOWN)])
    status(text_table(["test", *_SHOWN], rows))
    for name, summary in summaries.items():
        status(
            f"{name}: best of {summary['steps']} steps is {summary['best_step']}, "
            f"{summary['tokens_of_filling']:.0%} of the tokens are filling"
        )
    status(f"see {workdir}")


if __name__ == "__main__":
    run(main)

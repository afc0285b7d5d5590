"""A report on a run: one HTML page with pictures, and its numbers as JSON beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dlrm_jax.cli.data_of_run import data_of_run
from dlrm_jax.cli.page import check_file, check_own, check_writable
from dlrm_jax.cli.run_files import read_lines, read_summary
from dlrm_jax.cli.run_numbers import measure_data, measure_tables
from dlrm_jax.cli.run_page import run_page
from dlrm_jax.config import Config
from dlrm_jax.embedding.plan import Plan
from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json, write_text
from dlrm_jax.inference.model_checks import check_model
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.inference.value_names import ValueNames
from dlrm_jax.inference.vocabularies import check_same_data
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.metrics import score
from dlrm_jax.training.record import to_json
from dlrm_jax.training.rows_by_id import STREAM

_GENERATOR = "dlrm_jax report"

_WITHOUT_DATA = (
    "These need the examples: name the data that the run was trained on as --data, as in training."
)
_OF_STREAM = (
    "A stream's examples aren't kept: python -m dlrm_jax evaluate measures the model on a log."
)


def write_run_report(
    run: Path,
    data: Path | None,
    mesh: Mesh,
    batch_size: int,
    model: str | None,
    most: int,
    permutations: int,
    output: Path | None = None,
) -> Path:
    """Writes ``report.html`` and ``report.json`` to the workdir of a run, or to another directory.

    Args:
        run: workdir of the run, which may still go on.
        data: directory or raw file that it was trained on; None for generated examples, or to
            leave out what needs the data.
        mesh: mesh of the predictions.
        batch_size: number of rows predicted at a time.
        model: class of the model, if it is one of the user's own.
        most: largest number of rows of a split that are predicted.
        permutations: number of permutations of each feature.
        output: directory of the files; None for the workdir.

    Returns:
        The path of the page.

    Raises:
        UserError: there is no checkpoint, the data are others or given with a run of a stream, or
            the files can't be written or would replace some that aren't those of an earlier report.
    """
    page, file = ((output or run) / name for name in ("report.html", "report.json"))
    _check_own(page, file)
    if not (run / "checkpoints").is_dir():
        raise UserError(f"run: expected the workdir of a run, {run} has no checkpoints/")
    checkpoint = find_checkpoint(run)
    metadata = read_metadata(checkpoint)
    config = trained_config(checkpoint, metadata)
    check_model(checkpoint, config, model)
    check_writable(page)
    of_stream = STREAM in metadata
    if of_stream and data:
        raise UserError(
            f"--data has no effect with {run}, the run of a stream, whose examples aren't kept; "
            f"python -m dlrm_jax evaluate --checkpoint={run} --data={data} measures the model on a "
            f"log"
        )
    dataset = data_of_run(config, metadata["identity"].get("data"), data, checkpoint)
    predictor = Predictor.load(checkpoint, mesh, batch_size, model)
    if predictor.vocabularies:
        check_same_data(predictor.vocabularies, checkpoint, predictor.fingerprint)
    names = ValueNames(config, predictor.vocabularies)
    numbers = {
        "generator": _GENERATOR,
        "name": run.resolve().name,
        "workdir": str(run),
        "checkpoint": str(checkpoint),
        "step": metadata["step"],
        **_of_run(run, config, metadata),
        "source": dataset.source if dataset else "a stream" if of_stream else "not given",
        "data": None,
        "without_data": _OF_STREAM if of_stream else _WITHOUT_DATA,
    }
    if dataset:
        found = measure_data(predictor, dataset, names, most, permutations)
        tables = found.pop("tables")
        numbers["data"] = {**found, "has_values": names.has_values}
    else:
        tables = measure_tables(predictor, names)
    plan = Plan.from_json(json.dumps(metadata["plan"])) if "plan" in metadata else None
    for table in tables:
        table["placement"] = plan.placement(table["table"]) if plan else "unknown"
    numbers["tables"] = tables
    text = to_json(numbers, indent=1)
    write_text(file, text)
    run_page(json.loads(text)).write(page)
    return page


def _of_run(run: Path, config: Config, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the files of the run, and its checkpoint, say about it."""
    is_best = score(metadata.get("validation"), config.best_metric) is not None
    return {
        "summary": read_summary(run),
        "record": read_lines(run),
        "best_step": metadata["step"] if is_best else None,
        "why_this_step": f"the best {config.best_metric} in validation"
        if is_best
        else f"the latest, as none was validated by {config.best_metric}",
        "config": dataclasses.asdict(config),
        "defaults": dataclasses.asdict(Config()),
        "mesh": metadata.get("mesh", "unknown"),
        "plan": metadata.get("plan"),
        "versions": metadata.get("versions", {}),
        "warm_start": metadata.get("warm_start"),
        "continue_from": metadata.get("continue_from"),
        "fingerprint": metadata["identity"].get("data", "unknown"),
    }


def _check_own(page: Path, file: Path) -> None:
    """Checks that nothing but an earlier report would be replaced."""
    check_own(page)
    check_file(file)
    if not file.exists():
        return
    try:
        found = read_json(file)
        ours = isinstance(found, dict) and found.get("generator") == _GENERATOR
    except ValueError:
        ours = False
    if not ours:
        raise UserError(f"{file} exists, and this program didn't make it; move it or rename it")

"""Writes the dense part of an artifact as an ONNX graph, with the tables beside it.

OUTPUT/model.onnx        dense [N, D], vectors [N, W] -> logit [N], probability [N]
OUTPUT/lookups.json      which table and which columns of the ids the vectors are of
OUTPUT/tables/NAME.npy   the tables, float32 [rows, dim]
OUTPUT/golden/           examples and their predictions, those of the artifact
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.conversion.onnx_graph import dense_graph
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.copied_files import copy_directory
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import file_name
from dlrm_jax.files import creating
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.serving.golden import Golden
from dlrm_jax.serving.sensitivity import FLOAT32, Tolerance

TOLERANCE = Tolerance(1e-6, FLOAT32)
"""Differences of a probability, which the graph gives in float32."""

MODEL = "model.onnx"


def onnx_libraries() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime.

    Raises:
        UserError: one isn't installed.
    """
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise UserError(
            f"onnx: {error.name} isn't installed; run pip install -e '.[onnx]' in the checkout"
        ) from error


def write_onnx(artifact: Path, output: Path) -> float:
    """Writes graph and tables, and compares the predictions of onnxruntime with golden rows.

    Args:
        artifact: directory of the artifact, with tables that aren't rounded to integers.
        output: directory to make.

    Returns:
        The largest difference of a probability.

    Raises:
        UserError: the model is another one than DLRM or DCN-v2, see `OwnModel`, or its predictions
            differ.
        DamagedArtifactError: the golden rows aren't as they were written.
    """
    onnx, runtime = onnx_libraries()
    model = OwnModel.open(artifact)
    loaded = Artifact.load(artifact)
    shape = model.architecture
    shapes = [
        dataclasses.replace(shape, interaction=kind.interaction, self_interaction=kind.alike)
        for kind in model.interactions
    ]
    graphs = [dense_graph(onnx, model, each) for each in shapes or [shape]]
    rows = Golden.read(artifact, loaded.manifest)
    differences = [_difference(runtime, x.SerializeToString(), loaded, rows) for x in graphs]
    # Where the widths fit several interactions, the golden rows tell which one it is.
    best = int(np.argmin(differences))
    difference, allowed = differences[best], TOLERANCE.least
    if all(program.is_float32 for program in loaded.programs.values()):
        shift = loaded.manifest.shift
        allowed = TOLERANCE.of(difference, loaded, rows.examples, lambda x: sigmoid(x, shift))
    if not difference <= allowed:
        raise UserError(
            f"{artifact}: predictions of onnxruntime differ by {difference:.2g} from its "
            f"golden rows, expected at most {allowed:.2g}; is it a model of your own, or one with "
            f"compute_dtype=bfloat16?"
        )
    with creating(output) as directory:
        directory.mkdir()
        onnx.save(graphs[best], directory / MODEL)
        _write_tables(model, loaded, directory)
        copy_directory(artifact / "golden", directory / "golden")
        if loaded.id_rows:  # whoever runs the graph has no keys
            ids = directory / "golden" / "ids.npy"
            ids.unlink()
            write_npy(ids, loaded.rows_of(np.asarray(rows.examples.ids)))
    return difference


def _write_tables(model: OwnModel, artifact: Artifact, directory: Path) -> None:
    (directory / "tables").mkdir()
    files = {}
    for table, rows in model.tables():
        files[table] = f"tables/{file_name(table)}.npy"
        write_npy(directory / files[table], rows)
    lookups = [
        {
            "feature": note.feature,
            "table": note.table,
            "file": files[note.table],
            "pooling": note.pooling,
            "columns": list(note.columns),
        }
        for note in artifact.manifest.lookups
    ]
    text = json.dumps({"lookups": lookups}, indent=1) + "\n"
    (directory / "lookups.json").write_text(text, encoding="utf-8")


def _difference(runtime: Any, model: bytes, artifact: Artifact, rows: Golden) -> float:
    """The largest difference of a probability from the golden rows."""
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    vectors = artifact.lookups(artifact.rows_of(np.asarray(rows.examples.ids)))
    inputs = {"dense": np.asarray(rows.examples.dense), "vectors": vectors}
    (found,) = session.run(["probability"], inputs)
    return _largest(np.asarray(found, np.float64), rows.probabilities)


def _largest(found: Float64[np.ndarray, " N"], expected: Float64[np.ndarray, " N"]) -> float:
    return float(np.max(np.abs(found - expected)))

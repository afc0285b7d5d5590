"""DLRM's dense model by native kernels in place of the program, if they are built.

A call of XLA's program takes longer than the layers of a row, the products of few rows are slower
in it, and there is one to compile for each batch size. `experiments.benchmarks.serving` times both.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from dlrm_jax.artifact.dense_note import LinearNote
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.row_pooling import RowPooling
from dlrm_jax.backend import CPU
from dlrm_jax.native import quantized_rows
from dlrm_jax.native.dense_model import DenseModel, Layer, Quantization


def native_dense(
    manifest: Manifest, layers: Mapping[str, jax.Array], lookups: RowPooling
) -> DenseModel | None:
    """The dense model of an artifact by native kernels.

    Args:
        manifest: description of the artifact.
        layers: arrays of the dense model by name.
        lookups: lookups that give the vectors.

    Returns:
        None if the manifest notes no layers, if the kernels aren't built, or if predictions
        run on an accelerator.
    """
    note = manifest.dense_layers
    if note is None or jax.default_backend() != CPU.platform or not quantized_rows.available():
        return None

    def layer(own: LinearNote) -> Layer:
        kernel, bias, *rest = (np.asarray(layers[name]) for name in own.arrays)
        quantization = None
        if rest:
            scale, levels, zero = rest
            quantization = Quantization(scale, float(levels[0]), int(zero[0]))
        return Layer(kernel, bias, own.relu, quantization)

    bottom, top = ([layer(x) for x in notes] for notes in (note.bottom, note.top))
    columns = [lookups.columns[name].start for name in note.vectors]
    return DenseModel(bottom, top, columns, note.self_interaction)

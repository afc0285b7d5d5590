"""DLRM's dense model with layers in bfloat16 or int8, made of the one in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dlrm_jax.artifact.dense_note import (
    MOST_INPUTS,
    DenseNote,
    LinearNote,
    Precision,
    QuantizationNote,
)
from dlrm_jax.errors import UserError
from dlrm_jax.serving.calibration import Calibration
from dlrm_jax.serving.dense_function import dense_logits
from dlrm_jax.serving.dense_layers import note_dense
from dlrm_jax.serving.layer_quantization import Levels, quantize_layer
from dlrm_jax.serving.trained_model import TrainedModel

_NATIVE: Mapping[str, tuple[Any, ...]] = {
    "interaction": ("dot",),
    "normalization": ("none",),
    "dropout": (0,),
    "compute_dtype": ("float32",),
    "pooling": ("sum", "mean"),
    "compression": ("none",),
    "numeric_embedding": ("none",),
}
"""What DLRM's settings may be so that its layers have a note."""


@dataclasses.dataclass(frozen=True)
class DenseLayers:
    """A dense model in some precision.

    Attributes:
        note: note of its layers; None for what native code doesn't run.
        arrays: arrays by name.
        logits: function of arrays by name, dense features and vectors by lookup.
    """

    note: DenseNote | None
    arrays: Mapping[str, np.ndarray]
    logits: Callable[[Any, Any, Mapping[str, Any]], Any]

    @classmethod
    def of(cls, model: TrainedModel) -> DenseLayers:
        """The layers as they were trained."""
        dense = model.dense
        return cls(note_dense(dense.model(dense.layers)), dense.layers, dense.logits)

    def in_precision(self, precision: Precision, calibration: Calibration | None) -> DenseLayers:
        """The layers in a precision.

        With int8, the first layer of the bottom MLP is in bfloat16: dense features may have units
        of their own each, which one scale doesn't fit. It has few inputs, so this costs little.

        Args:
            precision: type of the products.
            calibration: inputs of the layers, for int8.
        """
        if precision == "float32":
            return self
        assert self.note is not None
        arrays = dict(self.arrays)

        def in_bfloat16(note: LinearNote) -> LinearNote:
            arrays[note.kernel] = arrays[note.kernel].astype(jnp.bfloat16)
            return dataclasses.replace(note, precision="bfloat16")

        def in_int8(note: LinearNote) -> LinearNote:
            assert calibration is not None
            found, added = int8_arrays(note, arrays, calibration.levels(note))
            arrays.update(added)
            return found

        change = in_int8 if precision == "int8" else in_bfloat16
        first, *others = self.note.bottom
        bottom = in_bfloat16(first), *map(change, others)
        top = tuple(map(change, self.note.top))
        note = dataclasses.replace(self.note, bottom=bottom, top=top)

        def logits(layers: Any, dense: Any, vectors: Mapping[str, Any]) -> Any:
            return dense_logits(note, layers, dense, vectors)

        return DenseLayers(note, arrays, logits)


def int8_arrays(
    note: LinearNote, arrays: Mapping[str, np.ndarray], levels: Levels
) -> tuple[LinearNote, dict[str, np.ndarray]]:
    """A layer in int8: its note, and its arrays by name.

    Raises:
        UserError: it has too many inputs.
    """
    kernel, bias = arrays[note.kernel], arrays[note.bias]
    if len(kernel) > MOST_INPUTS:
        raise UserError(
            f"layers: expected at most {MOST_INPUTS:,} inputs of a layer in int8, {note.kernel} "
            f"has {len(kernel):,}; choose bfloat16"
        )
    layer, (stem, _, _) = quantize_layer(kernel, bias, levels), note.kernel.rpartition(".")
    own = QuantizationNote(f"{stem}.scale", f"{stem}.levels", f"{stem}.zero")
    found = {note.kernel: layer.kernel, note.bias: layer.bias, own.scale: layer.scale}
    found |= {own.levels: np.array([levels.levels]), own.zero: np.array([levels.zero], np.int32)}
    return dataclasses.replace(note, precision="int8", quantization=own), found


def check_quantizable(model: TrainedModel, layers: DenseLayers, precision: Precision) -> None:
    """Checks that a dense model may have layers in a precision.

    Raises:
        UserError: it isn't DLRM, has parts that native code doesn't run, or numbers that int8
            hasn't.
    """
    if precision == "float32":
        return
    if layers.note is not None:
        if precision == "int8":
            _check_finite(layers.note, layers.arrays)
        return
    name, config = model.config.model, model.config
    if name == "dlrm":
        values = {x: getattr(config, x) for x in _NATIVE}
        name += " with " + ", ".join(f"{x}={y}" for x, y in values.items() if y not in _NATIVE[x])
    raise UserError(
        f"layers: {precision} is for DLRM with dot products, in float32, without normalization, "
        f"dropout, compressed tables, pooling=learned and numeric_embedding; the run is a model "
        f"{name}; leave it out"
    )


def _check_finite(note: DenseNote, arrays: Mapping[str, np.ndarray]) -> None:
    for layer in (*note.bottom, *note.top):
        for name in layer.arrays:
            if not np.isfinite(arrays[name]).all():
                raise UserError(
                    f"layers: expected finite numbers for int8, {name} has NaN or infinity; export "
                    f"a checkpoint from before the run diverged"
                )

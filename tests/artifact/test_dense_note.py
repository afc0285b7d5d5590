"""Layers that a manifest notes must fit each other: native code would read beyond their ends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dlrm_jax.artifact.dense_note import DenseNote, LinearNote, QuantizationNote
from dlrm_jax.artifact.manifest import MANIFEST, Manifest
from dlrm_jax.artifact.notes import (
    FeatureNote,
    FileNote,
    LayerNote,
    LookupNote,
    ProgramNote,
    TableNote,
)
from dlrm_jax.artifact.signed_text import signed_text
from dlrm_jax.errors import DamagedArtifactError

SHAPES = {"k0": (2, 4), "b0": (4,), "k1": (6, 1), "b1": (1,), "b2": (2,), "k2": (6, 2)}
FILES = ("a", "b", *SHAPES, "p")
BOTTOM, TOP = LinearNote("k0", "b0", True), LinearNote("k1", "b1", False)
NOTE = DenseNote((BOTTOM,), (TOP,), ("l0",), True)  # 4 numbers and 3 pairs
GOOD = Manifest(
    name="a",
    step=3,
    made_by={},
    data="",
    dense_features=2,
    features=(FeatureNote("f", 7, 1), FeatureNote("g", 7, 1), FeatureNote("h", 7, 3)),
    labels=(),
    shift=0.0,
    tables=(TableNote("a", 7, 4, "float32", "a"), TableNote("b", 7, 3, "float32", "b")),
    lookups=(
        LookupNote("l0", "f", "a", "sum", (0, 1)),
        LookupNote("l1", "g", "b", "sum", (1, 2)),
        LookupNote("l2", "h", "a", "none", (2, 5)),
    ),
    layers=tuple(LayerNote(name, shape, "float32", name) for name, shape in SHAPES.items()),
    programs=(ProgramNote(None, "p"),),
    files={name: FileNote(8, "ab") for name in FILES},
)


def written(directory: Path, note: DenseNote, **changes: Any) -> Manifest:
    dataclasses.replace(GOOD, dense_layers=note, **changes).write(directory)
    return Manifest.read(directory)


def test_what_fits(tmp_path: Path):
    shapes = {**SHAPES, "k1": (7, 1)}
    layers = tuple(LayerNote(name, shape, "float32", name) for name, shape in shapes.items())
    found = written(tmp_path, NOTE, layers=layers)
    assert found.dense_layers == NOTE
    assert found.vector_shapes == {"l0": (4,), "l1": (3,), "l2": (3, 4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            r"'k1' of float32\[7, n\] and 'b1' .*, got float32\[6, 1\] and float32\[1\]",
        ),
        ({"self_interaction": False, "vectors": ("l0", "l0")}, r"'k1' of float32\[7, n\]"),
        ({"bottom": ()}, "layers of the bottom MLP, got none"),
        ({"bottom": (BOTTOM, BOTTOM)}, r"'k0' of float32\[4, n\] .*, got float32\[2, 4\]"),
        ({"bottom": (LinearNote("k0", "b1", True),)}, r"got float32\[2, 4\] and float32\[1\]"),
        ({"bottom": (LinearNote("k0", "none", True),)}, r"got float32\[2, 4\] and none"),
        ({"bottom": (LinearNote("b0", "b0", True),)}, r"got float32\[4\] and float32\[4\]"),
        ({"vectors": ("l1",)}, "a lookup 'l1' of one vector of 4 numbers"),
        ({"vectors": ("l2",)}, "a lookup 'l2' of one vector"),
        ({"vectors": ("none",)}, "a lookup 'none'"),
        ({"vectors": (), "top": (LinearNote("k2", "b2", True),)}, r"'k2' of float32\[5, n\]"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(DamagedArtifactError, match=rf"manifest\.json: dense_layers: .*{message}"):
        written(tmp_path, dataclasses.replace(NOTE, **changes))


def test_what_has_more_than_one_output(tmp_path: Path):
    two = LinearNote("k2", "b2", True)
    short = dataclasses.replace(NOTE, self_interaction=False, vectors=("l0",), top=(two,))
    narrow = tuple(
        dataclasses.replace(x, shape=(5, 2)) if x.name == "k2" else x for x in GOOD.layers
    )
    with pytest.raises(DamagedArtifactError, match="expected a last layer of one output"):
        written(tmp_path, short, layers=narrow)
    single = tuple(
        dataclasses.replace(x, shape=(5, 1)) if x.name == "k1" else x for x in GOOD.layers
    )
    fits = dataclasses.replace(short, top=(TOP,))
    assert written(tmp_path, fits, layers=single).dense_layers == fits
    with pytest.raises(DamagedArtifactError, match="expected a model of one label"):
        written(tmp_path, fits, layers=single, labels=("clicked", "bought"))
    bfloat16 = (dataclasses.replace(single[0], dtype="bfloat16"), *single[1:])
    with pytest.raises(
        DamagedArtifactError, match=r"'k0' of float32\[2, n\] and .*, got bfloat16\[2, 4\]"
    ):
        written(tmp_path, fits, layers=bfloat16)


OWN = QuantizationNote("s", "l", "z")
INT8 = LinearNote("k", "b", True, "int8", OWN)
ARRAYS = {
    "k": ((2, 4), "int8"), "b": ((4,), "int32"), "s": ((4,), "float32"), "l": ((1,), "float32"),
    "z": ((1,), "int32"), "k1": ((7, 1), "bfloat16"), "b1": ((1,), "float32"),
}  # fmt: skip
SHORT = DenseNote((INT8,), (LinearNote("k1", "b1", False, "bfloat16"),), ("l0",), True)


def short(directory: Path, note: DenseNote, **changes: Any) -> Manifest:
    arrays = {**ARRAYS, **changes}
    layers = tuple(LayerNote(name, shape, dtype, "k0") for name, (shape, dtype) in arrays.items())
    return written(directory, note, layers=layers, dense_features=arrays["k"][0][0])


def test_layers_of_several_precisions(tmp_path: Path):
    found = short(tmp_path, SHORT).dense_layers
    assert found is not None
    assert found == SHORT
    assert found.precision == "int8"
    assert found.quantizations == (OWN,)
    assert dataclasses.replace(SHORT, bottom=SHORT.top).precision == "bfloat16"
    assert NOTE.precision == "float32"


@pytest.mark.parametrize(
    ("layer", "changes", "message"),
    [
        ({"quantization": None}, {}, "of layers in int8 alone, 'k' in int8 has None"),
        ({"precision": "float32"}, {}, r"layers 'k' of float32\[2, n\] and 'b' of float32\[n\]"),
        ({}, {"b": ((4,), "float32")}, r"'b' of int32\[n\], got int8\[2, 4\] and float32\[4\]"),
        ({}, {"s": ((3,), "float32")}, r"a layer 's' of float32\[4\], got float32\[3\]"),
        ({}, {"l": ((), "float32")}, r"a layer 'l' of float32\[1\], got float32\[\]"),
        ({}, {"z": ((1,), "int8")}, r"a layer 'z' of int32\[1\], got int8\[1\]"),
        ({"quantization": QuantizationNote("s", "l", "x")}, {}, r"'x' of int32\[1\], got none"),
    ],
)
def test_int8_that_does_not_fit(
    layer: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
):
    note = dataclasses.replace(SHORT, bottom=(dataclasses.replace(INT8, **layer),))
    with pytest.raises(DamagedArtifactError, match=rf"manifest\.json: dense_layers: .*{message}"):
        short(tmp_path, note, **changes)


def test_int8_of_floats_and_unknown_precisions(tmp_path: Path):
    floats = LinearNote("k1", "b1", False, "bfloat16", OWN)
    with pytest.raises(DamagedArtifactError, match="of layers in int8 alone, 'k1' in bfloat16 has"):
        short(tmp_path, dataclasses.replace(SHORT, top=(floats,)))
    short(tmp_path, SHORT)
    path = tmp_path / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    content["dense_layers"]["bottom"][0]["precision"] = "int2"
    path.write_text(signed_text(content), encoding="utf-8")
    with pytest.raises(DamagedArtifactError, match="Invalid enum value 'int2'"):
        Manifest.read(tmp_path)


def test_int8_with_too_many_inputs(tmp_path: Path):
    with pytest.raises(DamagedArtifactError, match="at most 32,768 inputs of a layer in int8, 'k'"):
        short(tmp_path, SHORT, k=((2**15 + 1, 4), "int8"))

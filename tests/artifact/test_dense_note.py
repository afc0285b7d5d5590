"""Layers that a manifest notes must fit each other: native code would read beyond their ends."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dlrm_jax.artifact.dense_note import DenseNote, LinearNote
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.notes import (
    FeatureNote,
    FileNote,
    LayerNote,
    LookupNote,
    ProgramNote,
    TableNote,
)
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
        ({}, r"'k1' of shape \[7, n\] and 'b1' of shape \[n\], got shapes \[6, 1\] and \[1\]"),
        ({"self_interaction": False, "vectors": ("l0", "l0")}, r"'k1' of shape \[7, n\]"),
        ({"bottom": ()}, "layers of the bottom MLP, got none"),
        ({"bottom": (BOTTOM, BOTTOM)}, r"'k0' of shape \[4, n\] .*, got shapes \[2, 4\]"),
        ({"bottom": (LinearNote("k0", "b1", True),)}, r"got shapes \[2, 4\] and \[1\]"),
        ({"bottom": (LinearNote("k0", "none", True),)}, r"got shapes \[2, 4\] and \[\]"),
        ({"bottom": (LinearNote("b0", "b0", True),)}, r"got shapes \[4\] and \[4\]"),
        ({"vectors": ("l1",)}, "a lookup 'l1' of one vector of 4 numbers"),
        ({"vectors": ("l2",)}, "a lookup 'l2' of one vector"),
        ({"vectors": ("none",)}, "a lookup 'none'"),
        ({"vectors": (), "top": (LinearNote("k2", "b2", True),)}, r"'k2' of shape \[5, n\]"),
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
    with pytest.raises(DamagedArtifactError, match=r"expected float32 layers 'k0'"):
        written(tmp_path, fits, layers=bfloat16)

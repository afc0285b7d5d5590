"""Which dense models native code may run, and what a manifest says of them."""

from __future__ import annotations

import dataclasses

import pytest
from in_memory import InMemory

from dlrm_jax.artifact.dense_note import DenseNote, LinearNote
from dlrm_jax.config import Config
from dlrm_jax.serving.dense_layers import note_dense

CONFIG = Config(
    table_rows=(9, 30),
    embedding_dim=4,
    dense_features=3,
    bottom_mlp=(6, 4),
    top_mlp=(5, 1),
    self_interaction=True,
)


def note_of(config: Config) -> DenseNote | None:
    dense = InMemory.of(config).dense
    return note_dense(dense.model(dense.layers))


def test_layers_have_the_names_of_the_arrays():
    note = note_of(CONFIG)
    assert note is not None
    assert note.vectors == ("C1", "C2")
    assert note.self_interaction
    assert note.bottom == (
        LinearNote("bottom.layers.0.kernel", "bottom.layers.0.bias", True),
        LinearNote("bottom.layers.1.kernel", "bottom.layers.1.bias", True),
    )
    assert [layer.relu for layer in note.top] == [True, False]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interaction", "cat"),
        ("normalization", "layer"),
        ("compute_dtype", "bfloat16"),
        ("pooling", "learned"),
        ("model", "dcn"),
    ],
)
def test_other_models_have_no_note(field: str, value: str):
    without = {"self_interaction": False} if value in ("cat", "dcn") else {}
    assert note_of(dataclasses.replace(CONFIG, **{field: value}, **without)) is None

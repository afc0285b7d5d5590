"""The forward pass in NumPy that the docs show, on models that they don't train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import blocks
from in_memory import InMemory

from dlrm_jax.config import Config
from dlrm_jax.serving.export import export

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
TITLE = "### Weights out: the model in NumPy\n"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compression": "quotient_remainder", "compress_above": 20, "collisions": 4},
        {"compression": "quotient_remainder", "compress_above": 0},
    ],
)
def test_it_is_the_model(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    rows, bags, mlps = (9, 30, 12), (1, 3, 2), {"bottom_mlp": (6, 4), "top_mlp": (7, 5, 1)}
    config = Config(
        table_rows=rows, bag_lengths=bags, embedding_dim=4, dense_features=3, **mlps, **changes
    )
    export(InMemory.of(config), tmp_path / "shops", "shops", "float32")
    expected = np.load(tmp_path / "shops" / "golden" / "probabilities.npy")
    assert np.ptp(expected) > 0.01, "nothing to compare"
    shown = DOCS.read_text(encoding="utf-8").partition(TITLE)[2]
    code = next(block for language, block in blocks(shown) if language == "python")
    monkeypatch.chdir(tmp_path)
    exec(code, {"np": np, "Path": Path})
    assert capsys.readouterr().out == "True\n"

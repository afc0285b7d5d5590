"""Saved models of sequences recommend as the ones that were saved, and damage is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.signed_text import signed_text
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.requests.saved_model import read_model as read_request_model
from dlrm_jax.sequential.model import NextItem
from dlrm_jax.sequential.recommender import Recommender
from dlrm_jax.sequential.saved_model import read_model, write_model
from dlrm_jax.sequential.settings import SequentialSettings


def small(encoder: Any = "sasrec", **settings) -> Recommender:
    """A model of 20 items that wasn't trained."""
    own = SequentialSettings(encoder=encoder, width=8, layers=1, max_length=20, **settings)
    table = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    model = NextItem(own, rngs=nnx.Rngs(1))
    model.eval()
    return Recommender(own, model, jnp.asarray(table), pl.Series([f"i{x}" for x in range(20)]))


@pytest.mark.parametrize("encoder", ["hstu", "sasrec", "bag"])
def test_a_model_that_is_read_recommends_as_before(tmp_path: Path, encoder: str):
    own = small(encoder, exclude_seen=True)
    write_model(tmp_path / "model", own, "small", 7, {"test": {"hr@10": 0.25}})
    found = read_model(str(tmp_path / "model"))
    times = {"times": [[1, 2, 9]], "time": [20]} if encoder == "hstu" else {}
    (before,), (after,) = (x.recommend([["i3", "i5", "i3"]], 5, **times) for x in (own, found))
    assert before.items == after.items
    assert not {"i3", "i5"} & set(after.items)  # as the settings say
    np.testing.assert_array_equal(before.scores, after.scores)
    assert found.settings == own.settings
    assert str(found) == f"Recommender({encoder}, 20 items, width 8)"
    noted = json.loads((tmp_path / "model" / "manifest.json").read_text(encoding="utf-8"))
    assert (noted["step"], noted["metrics"]) == (7, {"test": {"hr@10": 0.25}})
    with pytest.raises(UserError, match="exists"):
        write_model(tmp_path / "model", own, "small", 7)


def test_damage_and_other_directories(tmp_path: Path):
    with pytest.raises(UserError, match="is no saved model: cannot read"):
        read_model(tmp_path / "none")
    own = tmp_path / "model"
    write_model(own, small(), "small", 7)
    manifest = (own / "manifest.json").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"expected an artifact of rows .* a model of sequential"):
        Manifest.read(own)
    with pytest.raises(UserError, match="expected a model of kind requests"):
        read_request_model(own)

    def changed(message: str, signed: bool = True, **fields) -> None:
        noted = json.loads(manifest) | fields
        text = signed_text(noted) if signed else json.dumps(noted)
        (own / "manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_model(own)
        (own / "manifest.json").write_text(manifest, encoding="utf-8")

    noted = json.loads(manifest)
    changed("has format 2, this program reads 1: a later version", format=2)
    changed("expected a model of kind sequential, got one of kind requests", kind="requests")
    changed("a later version wrote its settings", settings=noted["settings"] | {"new": 1})
    changed("its bytes aren't those that were written", signed=False, step=8)
    changed("it names files that it lacks", layers={"x": "../secret.npy"})
    changed("its layers aren't those of its settings", layers={})
    changed("expected float32 of shape", settings=noted["settings"] | {"width": 9})
    content = bytearray((own / "items.npy").read_bytes())
    content[-1] ^= 1
    (own / "items.npy").write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=r"items\.npy: expected the checksum"):
        read_model(own)
    (own / "items.npy").unlink()
    with pytest.raises(DamagedArtifactError, match=r"items\.npy: it is missing"):
        read_model(own)

"""Saved models of requests score as the ones that were saved, and damage is an error."""

from __future__ import annotations

import datetime
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from random_requests import COLUMNS, ROWS, random_requests

from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.signed_text import signed_text
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.mesh import as_mesh
from dlrm_jax.requests.batches import RequestTraining
from dlrm_jax.requests.model import learner_for
from dlrm_jax.requests.saved_model import read_model, write_model
from dlrm_jax.requests.scorer import RequestScorer
from dlrm_jax.requests.settings import RequestSettings

REQUESTS = random_requests(16, longest=20, most=4)
HISTORY = {"seen": np.asarray([3, 9, 4]), "did": np.asarray([1, 0, 3])}
TIMES, TIME = np.asarray([10, 500, 900]), 1000
ITEMS, CONTEXT = np.asarray([4, 7, 29]), {"country": 2}


@functools.cache
def scorer(encoder: Any = "mean") -> RequestScorer:
    settings = RequestSettings(encoder=encoder, width=8, max_length=20, mlp=(6, 5), batch_size=8)
    shapes = RequestTraining(REQUESTS, np.arange(16), settings, 1).shapes
    learner = learner_for(COLUMNS, ROWS, shapes, settings, as_mesh("1x1"))
    return RequestScorer.of_state(learner, COLUMNS, settings, learner.init(3))


def scores(
    model: Any, history: Any = HISTORY, items: Any = ITEMS, context: Any = CONTEXT
) -> np.ndarray:
    return model.score(model.encode(history, TIMES, TIME), {"item": items}, context)


@pytest.mark.parametrize(
    "encoder", ["mean", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("stca", "hstu"))]
)
def test_a_model_that_is_read_scores_as_before(tmp_path: Path, encoder: str):
    own = scorer(encoder)
    write_model(tmp_path / "model", own)
    found = read_model(str(tmp_path / "model"))
    np.testing.assert_array_equal(scores(found), scores(own))
    assert found.scorer.settings == own.settings
    with pytest.raises(UserError, match="expected ids below 30"):
        scores(found, items=np.asarray([30]))
    with pytest.raises(UserError, match="exists"):
        write_model(tmp_path / "model", own)


def test_values_are_those_of_the_log(tmp_path: Path):
    own = scorer()
    known = {
        table: vocabulary.learn([pl.LazyFrame({"value": [f"{table}{i}" for i in range(rows - 2)]})])
        for table, rows in ROWS.items()
    }
    write_model(tmp_path / "model", own, known)
    found = read_model(tmp_path / "model")

    def ids(table: str, values: list[str]) -> np.ndarray:
        return vocabulary.encode(pl.Series(values), known[table], 1)[:, 0]

    seen, did = ["item3", "item9", "item1"], ["action1", "action0", "action1"]
    wanted = scores(
        own,
        {"seen": ids("item", seen), "did": ids("action", did)},
        ids("item", ["item5", "never seen"]),
        {"country": int(ids("country", ["country2"])[0])},
    )
    given = {"seen": seen, "did": did}, ["item5", "never seen"], {"country": "country2"}
    np.testing.assert_array_equal(scores(found, *given), wanted)
    for history, text in (
        ({"seen": seen, "other": did}, "expected the columns did, seen, got other, seen"),
        (
            {"seen": 3, "did": did},
            "history: seen: expected a list of single values of one type, got 3",
        ),
        ({"seen": [seen], "did": did}, "history: seen: expected a list of single values"),
        (
            {"seen": [1, 2, 3], "did": did},
            "history: seen: expected text, as in the log, got numbers",
        ),
        ({"seen": ["a", None, "b"], "did": did}, "history: seen: expected a value in each place"),
    ):
        with pytest.raises(UserError, match=text):
            found.encode(history, TIMES, TIME)
    with pytest.raises(UserError, match="times: expected integers of seconds, or date objects"):
        found.encode({"seen": seen, "did": did}, ["a", "b", "c"], TIME)
    with pytest.raises(UserError, match="context: expected the columns country, got city"):
        scores(found, given[0], given[1], {"city": "country2"})
    dates = [datetime.datetime(1970, 1, 1, second=x // 60) for x in (60, 120, 180)]
    kept = found.encode(given[0], dates, datetime.datetime(1970, 1, 2))
    assert kept.time == 86400


def test_damage_and_other_directories(tmp_path: Path):
    with pytest.raises(UserError, match="is no saved model: cannot read"):
        read_model(tmp_path / "none")
    own = tmp_path / "model"
    write_model(own, scorer())
    manifest = (own / "manifest.json").read_text(encoding="utf-8")
    later = json.loads(manifest) | {"format": 2}
    (own / "manifest.json").write_text(json.dumps(later), encoding="utf-8")
    with pytest.raises(UserError, match="has format 2, this program reads 1: a later version"):
        read_model(own)
    with pytest.raises(UserError, match=r"expected an artifact of rows .* a model of requests"):
        Manifest.read(own)
    changed = manifest.replace('"width": 8', '"width": 9')
    (own / "manifest.json").write_text(changed, encoding="utf-8")
    with pytest.raises(DamagedArtifactError, match="its bytes aren't those that were written"):
        read_model(own)
    outside = json.loads(manifest)
    outside["tables"]["item"] = "../secret.npy"
    (own / "manifest.json").write_text(signed_text(outside), encoding="utf-8")
    with pytest.raises(DamagedArtifactError, match="it names files that it lacks"):
        read_model(own)
    (own / "manifest.json").write_text(manifest, encoding="utf-8")
    content = bytearray((own / "table_0.npy").read_bytes())
    content[-1] ^= 1
    (own / "table_0.npy").write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=r"table_0\.npy: expected the checksum"):
        read_model(own)
    (own / "table_0.npy").unlink()
    with pytest.raises(DamagedArtifactError, match=r"table_0\.npy: it is missing"):
        read_model(own)

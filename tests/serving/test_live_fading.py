"""A server that fades features: who sees them, what metrics say, and schedules that change."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_server import Client, serving

from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.inference.fading import covered, request_hashes
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving import live_fading
from dlrm_jax.serving.live_fading import LiveFading

START = "2026-11-01T00:00:00Z"


def write(path: Path, **coverages: float) -> Path:
    features = {name: [[START, share]] for name, share in coverages.items()}
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"features": features, "salt": "s"}))
    new.replace(path)
    return path


@pytest.fixture(scope="module")
def predictor(artifact: Path) -> Predictor:
    return Predictor.load(artifact, batch_size=16)


@pytest.fixture(scope="module")
def rows(predictor: Predictor) -> list[dict[str, Any]]:
    frame = pl.read_csv(Path(__file__).parents[1] / "previous" / "raw.csv", n_rows=30)
    return frame.select(predictor.encoder.columns).to_dicts()


def values_of(text: str, name: str, **labels: str) -> list[float]:
    """The values of a metric's series that have these labels."""
    lines = [x for x in text.splitlines() if x.startswith(f"{name}{{")]
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return [float(x.rpartition(" ")[2]) for x in lines if all(y in x for y in wanted)]


def metrics_of(client: Client, version: str, rows: int) -> str:
    """The metrics, when they count so many rows of a version; answers come before."""
    deadline = time.monotonic() + 20
    while True:
        text = client.ask("GET", "/metrics")[1].decode()
        if values_of(text, "dlrm_jax_probability_count", version=version) == [rows]:
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.01)


def test_requests_and_metrics(
    artifact: Path,
    predictor: Predictor,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Of an artifact, and of the version after it."""
    monkeypatch.setattr(live_fading, "_SECONDS", 0.0)
    shutil.copytree(artifact, tmp_path / "1")
    ids = [f"request {i}" for i in range(12)]
    seen = covered(request_hashes(ids, "s"), {"page": 0.5})["page"].tolist()
    assert 3 <= sum(seen) <= 9
    without = [row | {"page": None} for row in rows]
    fade = write(tmp_path / "fade.json", page=0.5)
    with serving(tmp_path, fade=fade, drift_rows=20) as client:
        for request_id, is_seen in zip(ids, seen, strict=True):
            expected = predictor.predict(rows[:3] if is_seen else without[:3])
            for path in ("/predict", "/v2/models/small/infer"):
                body: Any = {"rows": rows[:3]}
                headers = {"x-request-id": request_id}
                if path != "/predict":
                    examples = predictor.encoder.rows(pl.DataFrame(rows[:3]), "rows")
                    dense, tensor = examples.dense.tolist(), np.asarray(examples.ids).tolist()
                    inputs = [
                        {"name": "dense", "datatype": "FP32", "shape": [3, 1], "data": dense},
                        {"name": "ids", "datatype": "INT32", "shape": [3, 3], "data": tensor},
                    ]
                    body, headers = {"id": request_id, "inputs": inputs}, {}
                status, found, _ = client.ask("POST", path, body, headers)
                assert status == 200, found
                got = found["predictions" if path == "/predict" else "outputs"]
                got = got if path == "/predict" else got[0]["data"]
                np.testing.assert_allclose(got, expected, rtol=1e-6)
        text = metrics_of(client, "1", 72)
        # What all rows share is faded, too.
        shared = [{x: y for x, y in row.items() if x != "page"} for row in without[:3]]
        body = {"rows": shared, "shared": {"page": rows[0]["page"]}}
        headers = {"x-request-id": ids[seen.index(False)]}
        found = client.ask("POST", "/predict", body, headers)[1]
        np.testing.assert_allclose(found["predictions"], predictor.predict(without[:3]), rtol=1e-6)
        counts = {"covered": 2 * sum(seen), "faded": 2 * (12 - sum(seen))}
        for coverage, count in counts.items():
            labels = {"version": "1", "feature": "page", "coverage": coverage}
            assert values_of(text, "dlrm_jax_feature_requests_total", **labels) == [count]
            assert values_of(text, "dlrm_jax_feature_probability_count", **labels) == [3 * count]
        (drift,) = values_of(text, "dlrm_jax_probability_drift", version="1", label="label")
        assert drift > 0
        assert len(values_of(text, "dlrm_jax_tested_unseen_share", version="1")) == 3

        shutil.copytree(artifact, tmp_path / "2")
        path = "/v2/repository/models/small/load"
        assert client.ask("POST", path)[:2] == (200, {"loaded": ["2"], "versions": ["2"]})
        client.predict(rows[:1])
        text = metrics_of(client, "2", 1)
        client.server._metrics.faded("1", {"page": True}, ["label"], np.zeros(1))  # the last to end
        for stale, new in ((0, "{"), (1, fade.read_text()), (0, "")):
            text = client.ask("GET", "/metrics")[1].decode()
            assert text.count('version="1"') == 0
            assert values_of(text, "dlrm_jax_fade_schedule_stale", model="small") == [stale]
            fade.write_text(new)
    assert not re.search(r'version="1"', text)
    # Too few rows.
    assert np.isnan(values_of(text, "dlrm_jax_probability_drift", version="2")).all()


def test_a_schedule_that_changes(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    now = [0.0]
    path = write(tmp_path / "fade.json", page=0)
    fading = LiveFading(path, lambda: now[0])
    fading.add("1", predictor)
    fading.check()
    assert fading.seen(predictor, "a") == {"page": False}
    write(path, page=1, age=0)
    assert fading.seen(predictor, "a") == {"page": False}
    now[0] += 1
    assert fading.seen(predictor, "") == {"page": True, "age": False}
    write(path, pages=0)
    now[0] += 1
    assert fading.seen(predictor, "a") == {"page": True, "age": False}
    assert "the schedule stays as it was: fade: features: expected" in caplog.text
    path.unlink()
    now[0] += 1
    assert fading.seen(predictor, "a") == {"page": True, "age": False}
    assert "cannot read" in caplog.text
    os.mkfifo(path)  # to open it waits for a writer
    now[0] += 1
    assert fading.seen(predictor, "a") == {"page": True, "age": False}
    assert "expected a file" in caplog.text
    assert fading.is_stale()
    path.unlink()
    write(path, age=1)
    now[0] += 1
    assert fading.seen(predictor, "a") == {"age": True}
    assert not fading.is_stale()
    fading.remove("1")
    with pytest.raises(UserError, match="got 'age'"):
        fading.check()


def failing(name: str) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, name)

    return fail


def test_a_bad_schedule_is_told_once_and_tried_until_it_is_good(
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """What was wrong may not be in the file: its permissions, a disk, the versions."""
    now = [0.0]
    path = write(tmp_path / "fade.json", page=1)
    fading = LiveFading(path, lambda: now[0])
    fading.add("1", predictor)

    def seen_after(seconds: int) -> dict[str, bool]:
        for _ in range(seconds):
            now[0] += 1
            fading.seen(predictor, "a")
        return fading.seen(predictor, "a")

    write(path, page=0)
    for name in ("dlrm_jax.inference.fade_schedule.read_json", "pathlib.Path.exists"):
        with monkeypatch.context() as patch:
            patch.setattr(name, failing(name))
            caplog.clear()
            assert seen_after(3) == {"page": True}
            assert [x.levelname for x in caplog.records] == ["ERROR"]
            assert "the schedule stays as it was: fade: cannot read" in caplog.text
            assert fading.is_stale()
    caplog.clear()
    with caplog.at_level("INFO"):
        assert seen_after(3) == {"page": False}
    assert caplog.text.count("the schedule has been read again") == 1
    fading.remove("1")
    write(path, page=1)
    assert seen_after(3) == {"page": False}
    fading.add("2", predictor)
    assert fading.is_stale()
    now[0] += 1
    assert not fading.is_stale()  # without a request
    assert fading.seen(predictor, "a") == {"page": True}


def test_a_feature_that_the_model_lacks_is_refused_at_the_start(artifact: Path, tmp_path: Path):
    with (
        pytest.raises(UserError, match="age, page, city, word, got 'shop'"),
        serving(artifact, fade=write(tmp_path / "fade.json", shop=0.5)),
    ):
        pass


def test_a_version_that_takes_the_name_of_another(
    predictor: Predictor, rows: list[dict[str, Any]], tmp_path: Path
):
    """The one that is served may stay: another may not be loaded, and it answers what has come."""
    frame = pl.DataFrame([row | {"click": i % 2} for i, row in enumerate(rows)])
    frame.write_parquet(tmp_path / "log.parquet")
    schema = Schema("click", ("word", "page", "city"), ("age",))
    preprocess([tmp_path / "log.parquet"], tmp_path / "other", Options(schema))
    fingerprint = Metadata.read(tmp_path / "other").fingerprint
    other = dataclasses.replace(predictor, vocabularies=tmp_path / "other", fingerprint=fingerprint)
    fading = LiveFading(write(tmp_path / "fade.json", page=0))
    fading.add("1", predictor)
    fading.add("1", other)
    for each in (predictor, other):
        given, expected = (
            each.row_encoder.rows(x) for x in (rows[:3], [x | {"page": None} for x in rows[:3]])
        )
        seen = fading.seen(each, "a")
        assert seen == {"page": False}
        np.testing.assert_array_equal(fading.apply(each, given, seen).ids, expected.ids)

"""A server applies deltas as they come, and every answer is of one whole state."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clients import Client, serving
from publishing_run import Run, run_of
from saved_run import CONFIG, examples

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.delta_chain import delta_path
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.artifact.updated_artifact import UpdatedArtifact
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples
from dlrm_jax.dynamic_ids.keys import KeyChanges
from dlrm_jax.errors import DamagedDeltaError
from dlrm_jax.inference.predictor import Predictor

ROWS = examples(40, seed=5).take(np.arange(40))
LIVING = dataclasses.replace(CONFIG, placements=(), dynamic_ids=("C2=200", "C3=70"))
"""Keys that change with each delta, of ids that requests have."""
BATCH = 16  # rows that the server predicts at a time: the rows of a request are in several batches


def ask(client: Client) -> np.ndarray:
    inputs = [
        {"name": "dense", "datatype": "FP32", "shape": [*ROWS.dense.shape]},
        {"name": "ids", "datatype": "INT32", "shape": [*np.shape(ROWS.ids)]},
    ]
    for tensor, array in zip(inputs, (ROWS.dense, ROWS.ids), strict=True):
        tensor["data"] = np.ravel(array).tolist()
    status, found, _ = client.ask("POST", "/v2/models/small/infer", {"inputs": inputs})
    assert status == 200, found
    return np.array(found["outputs"][0]["data"])


def metric(client: Client, name: str) -> float | None:
    text = client.ask("GET", "/metrics")[1].decode()
    found = re.search(rf'^dlrm_jax_{name}\{{.*version="1".*\}} (.*)$', text, re.MULTILINE)
    return found and float(found[1])


def predicted(run: Run, path: Path, row_format: RowFormat) -> np.ndarray:
    """What a full export of a state predicts."""
    predictor = Predictor.load(run.exported(path, row_format), batch_size=BATCH)
    return predictor.predict(Examples(ROWS.dense, np.asarray(ROWS.ids), ROWS.labels))


@pytest.mark.parametrize(
    ("row_format", "config"),
    [
        pytest.param("float32", CONFIG, marks=pytest.mark.thorough),
        pytest.param("int4", CONFIG, marks=pytest.mark.thorough),
        ("float32", LIVING),
    ],
)
def test_answers_under_load_are_of_one_state_each(
    row_format: RowFormat, config: Config, tmp_path: Path
):
    models = tmp_path / "models"
    with run_of(tmp_path, row_format, config=config, share=1e9) as run:
        run.begin()
        run.publish()
        states = [predicted(run, tmp_path / "0", row_format)]
        with serving(models, watch_seconds=0.01) as client:
            ended = threading.Event()
            answers: list[list[np.ndarray]] = [[], [], []]

            def keep_asking(found: list[np.ndarray]) -> None:
                while not ended.wait(0.003):  # else requests take all of the processor
                    found.append(ask(client))

            threads = [threading.Thread(target=keep_asking, args=[x]) for x in answers]
            for thread in threads:
                thread.start()
            try:
                for number in range(1, 6):
                    run.train(3)
                    states.append(np.empty(0))
                    run.publish()
                    states[-1] = predicted(run, tmp_path / f"{number}", row_format)
                    while metric(client, "delta_number") != number:
                        time.sleep(0.01)
                    assert metric(client, "delta_step") == int(run.state.step)
            finally:
                ended.set()
                for thread in threads:
                    thread.join()
            last = ask(client)
    for older, newer in itertools.pairwise(states):
        assert np.median(np.abs(older - newer)) > 1e-3, "states could be taken for each other"
    assert np.abs(last - states[-1]).max() < 1e-6
    for found in answers:
        near = [[np.abs(x - state).max() < 1e-6 for state in states] for x in found]
        assert all(map(any, near)), "an answer is of no state"
        order = [one.index(True) for one in near]
        assert order == sorted(order)
        assert len(set(order)) > 3


@pytest.mark.parametrize("fault", ["torn", "flipped", "lost", "foreign"])
def test_a_bad_delta_is_told_of_once_and_the_state_stays(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        for _ in range(4):
            run.publish()
    deltas, kept = tmp_path / "models" / "1.deltas", tmp_path / "kept"
    shutil.move(deltas, kept)
    with serving(tmp_path / "models") as client:
        repository = client.server.repository
        assert metric(client, "delta_number") is None
        shutil.copytree(kept / "000001", deltas / "000001")
        repository.refresh()
        before = ask(client)
        bad = delta_path(deltas, 2)
        shutil.copytree(kept / "000002", bad)
        rows = bad / "rows.bytes"
        content = rows.read_bytes()
        if fault == "torn":
            rows.write_bytes(content[:-1])
            message = f"rows.bytes: expected {len(content):,} bytes, it has {len(content) - 1:,}"
        elif fault == "flipped":
            rows.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            message = "expected the checksum"
        elif fault == "lost":
            shutil.rmtree(bad)
            shutil.copytree(kept / "000003", deltas / "000003")
            message = "000002 is damaged: delta.json: it is missing, and delta 3 is there"
        else:
            shutil.rmtree(bad)
            shutil.copytree(kept / "000003", bad)
            message = "it doesn't follow what is there: expected number 2, it has 3"
        caplog.set_level(logging.ERROR)
        for _ in range(3):
            repository.refresh()
        (line,) = caplog.messages
        assert line.startswith("version 1 stays at delta 1: ")
        assert message in line
        assert f"or remove {deltas} and start the server again" in line
        assert (metric(client, "delta_number"), metric(client, "delta_stale")) == (1, 1)
        np.testing.assert_array_equal(ask(client), before)
        shutil.rmtree(deltas)
        shutil.copytree(kept, deltas)
        caplog.set_level(logging.INFO)
        caplog.clear()
        repository.refresh()
        assert caplog.messages == ["version 1 goes on: it is at delta 3"]
        assert (metric(client, "delta_number"), metric(client, "delta_stale")) == (3, 0)
        assert np.abs(ask(client) - before).max() > 1e-4


def test_a_delta_that_gives_an_id_a_second_row_changes_nothing(tmp_path: Path):
    with run_of(tmp_path, config=LIVING, share=1e9) as run:
        run.begin()
        run.publish()
        run.publish()
        run.train(5)
        run.publish()
        first, second = run.deltas()
        (base,) = run.bases()
    live = UpdatedArtifact(Artifact.load(base))
    live.apply(first)

    def state() -> tuple[int, list[int], np.ndarray]:
        with live.reading() as artifact:
            assert artifact.id_rows
            index = artifact.id_rows.indexes["C3"]
            rows = [x.table.rows.copy() for x in artifact.lookups.lookups]
            ids = index.live_keys
            return (
                artifact.manifest.step,
                [*ids.tolist(), *index.find(ids)],
                np.concatenate([x.ravel() for x in rows]),
            )

    before = state()
    with live.reading() as artifact:
        assert artifact.id_rows
        index = artifact.id_rows.indexes["C3"]
        key = index.live_keys[:1]
        (row,) = index.find(key).tolist()
    other = np.array([row - 1 if row > 1 else row + 1], np.int32)
    bad = dataclasses.replace(second, keys={"C3": KeyChanges(other, key, np.array([True]))})
    damaged = rf"1\.deltas/000002 is damaged: keys\.records: .* id {key[0]} keeps another, too"
    for _ in range(2):
        with pytest.raises(DamagedDeltaError, match=damaged):
            live.apply(bad)
        for own, expected in zip(state(), before, strict=True):
            np.testing.assert_array_equal(own, expected)
    live.apply(second)
    assert state()[0] == second.note.step > before[0]


def test_another_artifact_of_the_name_has_no_gauges_of_the_deltas_before(tmp_path: Path):
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        run.publish()
        run.publish()
        other = run.exported(tmp_path / "other")
    base = tmp_path / "models" / "1"
    with serving(tmp_path / "models") as client:
        assert (metric(client, "delta_number"), metric(client, "delta_step")) == (1, 2)
        shutil.rmtree(base.with_name("1.deltas"))
        shutil.rmtree(base)
        shutil.move(other, base)
        client.server.repository.refresh()
        assert client.server.repository.versions == ["1"]
        names = ("delta_number", "delta_step", "delta_written_seconds", "delta_stale")
        assert [metric(client, name) for name in names] == [None, None, None, 0]


def test_a_new_base_takes_the_place_of_the_old_one_with_its_deltas(tmp_path: Path):
    with run_of(tmp_path, deltas=3, share=1e9) as run:
        run.begin()
        run.publish()
        with serving(tmp_path / "models") as client:
            for _ in range(3):
                run.publish()
            client.server.repository.refresh()
            assert (client.server.repository.versions, metric(client, "delta_step")) == (["1"], 4)
            run.publisher._writer.compact_if_due(wait=True)
            run.publish()
            expected = predicted(run, tmp_path / "expected", "float32")
            client.server.repository.refresh()
            assert client.server.repository.versions == ["4"]
            assert np.abs(ask(client) - expected).max() < 1e-6

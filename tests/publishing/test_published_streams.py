"""A stream is published while it trains: killed and resumed, it has the bytes of an export."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
from clients import serving
from main_job import in_background, run
from publishing_run import compacted, files_in
from stream_log import log, publish, write_schema

from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.publishing.published import newest

PROGRAM = ("-m", "dlrm_jax", "train")
SIZES = [320, 200, 120]


def test_killed_served_and_resumed(tmp_path: Path):
    segments, models = tmp_path / "segments", tmp_path / "models"
    segments.mkdir()
    rows, starts = log(sum(SIZES)), np.cumsum([0, *SIZES]).tolist()
    flags = (
        f"--stream={segments}",
        f"--schema={write_schema(tmp_path / 'schema.json')}",
        f"--workdir={tmp_path / 'run'}",
        f"--publish={models}",
        "--publish_every_seconds=0",
        "--checkpoint_every=7",
        "--table_rows=60",
        "--dynamic_ids=item=21:evict_share=0.1,tags=9:max_age=3",
        "--embedding_dim=8",
        "--bottom_mlp=8",
        "--top_mlp=8,1",
        "--batch_size=8",
        "--mesh=1x2",
    )

    def come(i: int) -> None:
        publish(segments, f"s{i:03d}.parquet", rows.slice(starts[i], SIZES[i]))

    def wait_for(what: str, count: int) -> None:
        deadline = time.monotonic() + 120
        while len([*models.glob(what)]) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    asked = rows.drop("click", "w", "t").sample(50, seed=1).to_dicts()
    come(0)
    with in_background(*flags, program=PROGRAM) as process:
        wait_for("*.deltas/0*", 2)
        process.end(signal.SIGKILL)
    with serving(models, watch_seconds=0.05) as client:
        status, answer = client.predict(asked)
        assert status == 200, answer
        before = answer["predictions"]
        for i in (1, 2):
            come(i)
        ended = run(*flags, "--stream_idle_seconds=0.1", program=PROGRAM)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "publish: goes on after step" in ended.stdout
        client.server.repository.refresh()
        last = client.predict(asked)[1]["predictions"]
    published = newest(models)
    assert published
    count = len([*published.chain.rest()])
    assert published.chain.step == sum(SIZES) // 8

    expected = tmp_path / "expected"
    given = (f"--run={tmp_path / 'run'}", f"--output={expected}")
    assert run("export", *given, program=("-m", "dlrm_jax")).returncode == 0
    found = files_in(compacted(models) if count else published.directory)
    assert {x for x, y in files_in(expected).items() if found.pop(x) != y} == set()
    assert not found
    own = Predictor.load(expected).predict(asked)
    np.testing.assert_allclose(last, own, atol=1e-6)
    assert np.abs(np.array(before) - own).max() > 1e-3

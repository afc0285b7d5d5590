"""Measures how old a served model is: from an event to predictions that have learnt from it.

    python -m experiments.benchmarks.freshness --events_per_second=50000 --seconds=60

Events of a generated log come at a steady rate. A run trains on each batch when its last event has
come, and publishes; a server in another process looks for deltas while a client keeps it busy. An
event is servable when the server has applied a state of its step or a later one. It prints one
JSON object: seconds from events to there (p50, p99, most), shares of publication and server, bytes
of a delta, requests, and by how many seconds the training was behind the events at the end. The
first base and what came before it is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from absl import flags

from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batches
from dlrm_jax.data.prefetch import Prefetch
from dlrm_jax.presets import preset
from dlrm_jax.publishing.live_model import LiveModels
from dlrm_jax.publishing.published import newest
from dlrm_jax.publishing.publisher import Publisher, Settings
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import generate_data, train_batches
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.live_maps import LiveMaps, TranslatedBatches
from dlrm_jax.training.publication import ToldBatches
from dlrm_jax.training.record import versions
from dlrm_jax.training.step import make_train_step
from dlrm_jax.training.touched_rows import TouchedRows
from experiments.benchmarks.serving.servers import Server, free_port

_POLL = 0.02  # seconds
_ROWS = 100  # of a request


_NO_EFFECT = [name for name in OF_WHOLE_RUNS if name != "examples"]

define_run_flags("small", dict.fromkeys(_NO_EFFECT, "events come for some seconds"))
flags.DEFINE_float(
    "events_per_second", 50_000, "Events that come in a second; such as 10000.", 1, 1e9
)
flags.DEFINE_float("seconds", 60, "Seconds of events; such as 20.", 1, 1e6)
flags.DEFINE_float("publish_every", 1, "Least seconds between publications; such as 5.", 0, 1e6)
flags.DEFINE_float("watch", 0.5, "Seconds between two looks of the server; such as 1.", 0.01, 1e6)
flags.DEFINE_enum(
    "publish_tables", "float32", [*get_args(RowFormat)], "How rows of published tables are stored."
)


class Arrivals:
    """Batches that can be read when their events have come.

    Args:
        batches: batches.
        per_second: events of a second.
    """

    def __init__(self, batches: Batches, per_second: float):
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self._batches, self._per_second = batches, per_second
        self.begun, self.first = time.monotonic(), 0

    def begin(self, step: int) -> None:
        """Has the events of a step and the later ones come from now on."""
        self.begun, self.first = time.monotonic(), step

    def times(self, step: int) -> np.ndarray:
        """When the events of the batch of a step come, [B] seconds."""
        number = (step - self.first) * self.batch_size + np.arange(self.batch_size) + 1
        return self.begun + number / self._per_second

    def __getitem__(self, step: int) -> Any:
        """The batch of a step, from 0."""
        batch = self._batches[step]
        time.sleep(max(0.0, self.times(step)[-1] - time.monotonic()))
        return batch


class Watch(threading.Thread):
    """Asks the server which step it serves, and keeps it busy; until `end`."""

    def __init__(self, port: int, config: Config):
        super().__init__(daemon=True)
        self._port, self._ended = port, threading.Event()
        random = np.random.default_rng(0)
        ids = random.integers(
            0,
            np.repeat(config.table_rows, config.table_bag_lengths),
            (_ROWS, sum(config.table_bag_lengths)),
        )
        dense = random.normal(size=(_ROWS, config.dense_features))
        inputs = [
            {"name": name, "datatype": kind, "shape": [*x.shape], "data": x.ravel().tolist()}
            for name, kind, x in (("dense", "FP32", dense), ("ids", "INT32", ids))
        ]
        self._body = json.dumps({"inputs": inputs})
        self.seen: list[tuple[int, float]] = []
        """Steps that were served, each with the time when it was seen first."""
        self.seconds: list[float] = []
        """Seconds of each request."""

    def run(self) -> None:
        """Asks in turn."""
        busy = threading.Thread(target=self._keep_busy, daemon=True)
        busy.start()
        while not self._ended.wait(_POLL):
            text = self._ask("GET", "/metrics", None).decode()
            found = re.search(r"^dlrm_jax_delta_step\{.*\} (\S+)$", text, re.MULTILINE)
            step = int(float(found[1])) if found else -1
            if not self.seen or step > self.seen[-1][0]:
                self.seen.append((step, time.monotonic()))
        busy.join()

    def _keep_busy(self) -> None:
        while not self._ended.is_set():
            begun = time.monotonic()
            self._ask("POST", "/v2/models/model/infer", self._body)
            self.seconds.append(time.monotonic() - begun)
            self._ended.wait(_POLL)

    def _ask(self, method: str, path: str, body: str | None) -> bytes:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise RuntimeError(f"{path}: status {response.status}: {content[:200]!r}")
            return content
        finally:
            connection.close()

    def end(self) -> None:
        """Stops asking."""
        self._ended.set()
        self.join()


def measure(config: Config, row_format: RowFormat, scratch: Path) -> dict[str, Any]:
    """Trains, publishes and serves for some seconds."""
    data, mesh = generate_data(config), start(FLAGS.mesh)
    learner = make_learner(config, mesh)
    models = LiveModels(config, learner, data.fingerprint, 1.0, scratch / "run")
    settings = Settings(scratch / "models", FLAGS.publish_every, "model", row_format)
    publisher = Publisher(settings, models, TouchedRows(learner.collection), print_error)
    arrivals = Arrivals(train_batches(config, data), FLAGS.events_per_second)
    train_step, state = make_train_step(learner), learner.init(config.seed)
    maps = id_maps_of(learner.collection, config.seed)
    live = LiveMaps(learner, maps, config.seed) if maps else None
    steps = int(FLAGS.seconds * FLAGS.events_per_second / config.batch_size)
    taken: list[tuple[int, float]] = []
    with publisher:
        publisher.begin(state, live)
        rows = TranslatedBatches(arrivals, live) if live else arrivals
        noted, warm = ToldBatches(rows, publisher), 3
        arrivals.begin(0)
        for step in range(warm):
            batch = learner.put(noted[step])
            state = live.begin(state, step) if live else state
            state, _ = train_step(state, batch)
            publisher.step_done(state, step + 1, publisher.is_due(step + 1))
        publisher.end(state)
        port = free_port()
        command = [sys.executable, "-m", "dlrm_jax", "serve", settings.directory, "--name=model"]
        command += [f"--port={port}", f"--watch={FLAGS.watch}"]
        with Server("dlrm_jax serve", command, port):
            watch = Watch(port, config)
            watch.start()
            arrivals.begin(warm)
            wanted = (noted[step] for step in range(warm, warm + steps))
            with Prefetch(wanted, learner.put) as placed:
                for step, batch in enumerate(placed, warm):
                    state = live.begin(state, step) if live else state
                    state, loss = train_step(state, batch)
                    jax.block_until_ready(loss)  # a loop may not run ahead of what it computes
                    if publisher.step_done(state, step + 1, publisher.is_due(step + 1)):
                        taken.append((step + 1, time.monotonic()))
            behind = time.monotonic() - arrivals.times(warm + steps - 1)[-1]
            publisher.end(state)
            taken.append((warm + steps, time.monotonic()))
            while watch.is_alive() and (not watch.seen or watch.seen[-1][0] < warm + steps):
                time.sleep(_POLL)
            watch.end()
        published = newest(settings.directory)
        assert published
        sizes = [
            sum(file.bytes for file in delta.note.files.values())
            for delta in published.chain.rest()
        ]
    return summary(arrivals, range(warm, warm + steps), taken, watch, sizes) | {"behind": behind}


def summary(
    arrivals: Arrivals,
    steps: range,
    taken: list[tuple[int, float]],
    watch: Watch,
    sizes: list[int],
) -> dict[str, Any]:
    """The figures of a measurement, in seconds."""
    ages, places = [], iter(watch.seen)
    servable = next(places)
    for step in steps:
        while servable[0] < step + 1:
            servable = next(places)
        ages.append(servable[1] - arrivals.times(step))
    by_step = dict(taken)
    applied = [at - by_step[step] for step, at in watch.seen if step in by_step]
    every = [b - a for (_, a), (_, b) in itertools.pairwise(watch.seen[1:])]
    return {
        "event_to_servable": _quantiles(np.concatenate(ages)),
        "taken_to_servable": _quantiles(np.array(applied)),
        "between_states": _quantiles(np.array(every)),
        "request": _quantiles(np.array(watch.seconds)),
        "requests": len(watch.seconds),
        "states": len(watch.seen) - 1,
        "delta_bytes": int(np.median(sizes)) if sizes else None,
    }


def _quantiles(seconds: np.ndarray) -> dict[str, float] | None:
    if not len(seconds):
        return None
    p50, p99, most = np.quantile(seconds, [0.5, 0.99, 1])
    return {"p50": float(p50), "p99": float(p99), "most": float(most)}


def print_error(text: str) -> None:
    """A line that is no part of the figures."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measures, and prints the figures."""
    config = with_flags(preset(FLAGS.preset))
    needed = int((FLAGS.seconds + 1) * FLAGS.events_per_second)
    config = dataclasses.replace(config, examples=min(config.examples, max(needed, 10_000)))
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(config, FLAGS.publish_tables, Path(scratch))
    settings = {
        "events_per_second": FLAGS.events_per_second,
        "batch_size": config.batch_size,
        "rows": sum(config.table_rows),
        "publish_every": FLAGS.publish_every,
        "watch": FLAGS.watch,
        "tables": FLAGS.publish_tables,
    }
    print(json.dumps({**settings, **found, "versions": versions()}, indent=1))


if __name__ == "__main__":
    run(main)

"""Times a server of a model of requests: long histories with many candidates, and short ones.

    python -m experiments.benchmarks.request_serving
    python -m experiments.benchmarks.request_serving --encoder=hstu --connections=1,8

The model isn't trained, its values are texts. The server is a process of its own, on the same
cores as the clients. Each of ``--connections`` sends a request, waits for the answer, and sends
the next one, for ``--seconds``. Requests have ``--candidates`` candidates and ``--length`` actions;
then the same candidates come one by one, each in a request with the history, and are counted as
requests when all have been answered; then requests are short, with 10 candidates and 30 actions.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
from absl import flags
from flax import nnx

from dlrm_jax.cli.flags import FLAGS, define_numbers
from dlrm_jax.cli.run import run
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.errors import UserError
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.model import RequestRanker
from dlrm_jax.requests.saved_model import write_model
from dlrm_jax.requests.scorer import RequestScorer
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.text_table import text_table
from experiments.benchmarks.serving.servers import ours

flags.DEFINE_enum("encoder", "stca", ["stca", "hstu", "mean"], "Encoder.")
flags.DEFINE_integer("items", 100_000, "Rows of the table of items; such as 1000000.", 100)
flags.DEFINE_integer("candidates", 100, "Candidates of a request; such as 20.", 1)
flags.DEFINE_integer("length", 500, "Actions of a history; such as 2000.", 1)
flags.DEFINE_integer("width", 64, "Width of the vectors; such as 128.", 1)
define_numbers("connections", (1, 8), "Connections at a time; such as 1,32.", low=1)
flags.DEFINE_float("seconds", 5.0, "Seconds of each measurement; such as 20.", 0.1)

_SHORT = 10, 30  # candidates and actions
_BODIES = 50  # different requests

_COLUMNS = Columns(
    {"seen": "item", "action": "action"},
    {"item": "item"},
    {"country": "country"},
    history_time="seen_at",
    time="at",
)


def main() -> None:
    """Writes a model, starts a server, and prints a row for each way of asking."""
    kinds = {
        "all at once": (FLAGS.candidates, FLAGS.length, 1),
        "one by one": (1, FLAGS.length, FLAGS.candidates),
        "short": (*_SHORT, 1),
    }
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        write(model)
        with ours(model) as server:
            print(f"ready in {server.ready_seconds:.0f} s", flush=True)
            for name, (candidates, length, parts) in kinds.items():
                bodies = drawn(candidates, length)
                for connections in FLAGS.connections:
                    seconds = times(server.port, bodies, connections)
                    rate = len(seconds) / FLAGS.seconds
                    half, most = (f"{1e3 * x:.1f}" for x in np.percentile(seconds, (50, 99)))
                    of_all = candidates * parts, length, connections, f"{rate / parts:.1f}"
                    rows.append([name, *map(str, of_all), half, most])
    head = ["requests", "candidates", "actions", "connections", "requests/s", "p50 ms", "p99 ms"]
    print(text_table(head, rows))


def write(directory: Path) -> None:
    """Writes a model with random numbers."""
    settings = RequestSettings(encoder=FLAGS.encoder, width=FLAGS.width, max_length=FLAGS.length)
    model = RequestRanker(_COLUMNS, settings, rngs=nnx.Rngs(0))
    model.eval()
    counts = {"item": FLAGS.items, "action": 5, "country": 50}
    known = {
        name: vocabulary.learn([pl.LazyFrame({"value": [f"{name}{i}" for i in range(count)]})])
        for name, count in counts.items()
    }
    random = np.random.default_rng(0)
    tables = {
        name: jnp.asarray(random.normal(0, 0.1, (count + 2, FLAGS.width)), jnp.float32)
        for name, count in counts.items()
    }
    write_model(directory, RequestScorer(_COLUMNS, settings, model, tables), known)


def drawn(candidates: int, length: int) -> list[bytes]:
    """Bodies of random requests."""
    random = np.random.default_rng(1)

    def values(name: str, rows: int, count: int) -> list[str]:
        return [f"{name}{i}" for i in random.integers(0, rows, count)]

    def one() -> dict[str, Any]:
        return {
            "seen": values("item", FLAGS.items, length),
            "action": values("action", 5, length),
            "seen_at": np.sort(random.integers(0, 10**6, length)).tolist(),
            "item": values("item", FLAGS.items, candidates),
            "country": values("country", 50, 1)[0],
            "at": 10**6,
        }

    return [json.dumps({"request": one()}).encode() for _ in range(_BODIES)]


def times(port: int, bodies: list[bytes], connections: int) -> list[float]:
    """The seconds of each request that was answered in `--seconds`, without the first of each."""
    found: list[float] = []
    ready = threading.Barrier(connections)
    failed: list[str] = []

    def ask(first: int) -> None:
        own = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(own):
            number, end = first, 0.0
            while not end or time.perf_counter() < end:
                begun = time.perf_counter()
                own.request("POST", "/predict", bodies[number % len(bodies)])
                response = own.getresponse()
                answer = response.read()
                if response.status != 200:
                    failed.append(answer.decode())
                    ready.abort()
                    return
                number += 1
                if end:
                    found.append(time.perf_counter() - begun)
                else:
                    ready.wait()
                    end = time.perf_counter() + FLAGS.seconds

    threads = [threading.Thread(target=ask, args=[7 * i]) for i in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise UserError(f"the server has answered {failed[0]}")
    return found


if __name__ == "__main__":
    run(main)

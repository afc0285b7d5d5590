"""Times requests to a server of an artifact: one row, and many candidates of one user.

    python -m experiments.benchmarks.requests --artifact=kaggle

The server is a process of its own, the client keeps one connection. Rows have values of the
vocabularies, by Zipf's law, and small integers as dense features. A first pass over ``--rows`` rows
has values that the server hasn't seen since its start; further passes repeat them. Candidates share
the ``--shared`` columns: either all rows have all columns, or those are sent once. The predictions
of both must be equal to the last bit. The least time is the one that other programs disturb least.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from dlrm_jax.cli.flags import FLAGS, mark_required, require
from dlrm_jax.cli.run import run
from dlrm_jax.data.generated.zipf import bounded_zipf
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.vocabularies import read_values

flags.DEFINE_string("artifact", None, "Directory of an artifact with vocabularies; such as kaggle.")
flags.DEFINE_integer("rows", 300, "Different rows; such as 1000.", 1)
flags.DEFINE_integer("requests", 1000, "Requests of one row that are timed; such as 5000.", 1)
flags.DEFINE_integer("candidates", 500, "Rows of a request for candidates; such as 100.", 1)
flags.DEFINE_list(
    "shared", None, "Columns that candidates share; without it, the first half; such as user,age."
)
mark_required("artifact")


def main() -> None:
    """Starts a server, sends requests, and prints their times."""
    require("artifact")
    names, rows = draw_rows(Path(FLAGS.artifact), max(FLAGS.rows, FLAGS.candidates))
    shared = FLAGS.shared or names[: len(names) // 2]
    print(f"{len(names)} columns, {len(shared)} of them shared by {FLAGS.candidates} candidates")
    with server(FLAGS.artifact) as connection:
        single = [{"rows": [row]} for row in rows[: FLAGS.rows]]
        show("one row, new values", times(connection, single, len(single)))
        show("one row, known values", times(connection, single, FLAGS.requests))
        once = {name: rows[0][name] for name in shared}
        own = [{x: y for x, y in row.items() if x not in once} for row in rows[: FLAGS.candidates]]
        whole, parted = {"rows": [once | row for row in own]}, {"shared": once, "rows": own}
        if ask(connection, json.dumps(whole)) != ask(connection, json.dumps(parted)):
            raise UserError("the predictions of shared columns differ from those in each row")
        both = times(connection, [whole, parted], 200)
        show("candidates, all columns in each", both[::2])
        show("candidates, shared columns once", both[1::2])


def draw_rows(artifact: Path, count: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns of a model, and rows with values of its vocabularies."""
    predictor = Predictor.load(artifact)
    schema, random = predictor.encoder.options.schema, np.random.default_rng(0)
    columns: dict[str, list[Any]] = {
        x: random.geometric(0.1, count).tolist() for x in (*schema.dense, *schema.bins)
    }
    for table, name in enumerate(schema.categorical):
        if name in schema.bins:
            continue
        assert predictor.vocabularies
        known = read_values(predictor.vocabularies, table)["value"].drop_nulls()
        length = schema.bag_lengths.get(name, 1)
        places = bounded_zipf(random, len(known), 1.1, (count, length))
        values = [known[x].to_list() for x in places]
        columns[name] = values if name in schema.bag_lengths else [x[0] for x in values]
    names = predictor.encoder.columns
    return names, [{x: columns[x][i] for x in names} for i in range(count)]


@contextlib.contextmanager
def server(artifact: str) -> Iterator[http.client.HTTPConnection]:
    """A connection to a server of an artifact, which ends with it."""
    command = [sys.executable, "-m", "dlrm_jax", "serve", artifact, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            lines = iter(process.stdout.readline, "")
            found = next((x for x in (re.search(r"//(\S+):(\d+)", x) for x in lines) if x), None)
            if not found:
                raise UserError("the server has ended; see its message above")
            with contextlib.closing(http.client.HTTPConnection(found[1], int(found[2]))) as own:
                yield own
        finally:
            process.terminate()


def ask(connection: http.client.HTTPConnection, body: str) -> Any:
    """The predictions of a request."""
    connection.request("POST", "/predict", body)
    response = connection.getresponse()
    answer = json.load(response)
    if response.status != 200:
        raise UserError(f"status {response.status}: {answer['error']}")
    return answer["predictions"]


def times(connection: http.client.HTTPConnection, requests: list[Any], count: int) -> list[float]:
    """The seconds of each request; they are sent in turn."""
    bodies = [json.dumps(x) for x in requests]
    found = []
    for i in range(count):
        begun = time.perf_counter()
        ask(connection, bodies[i % len(bodies)])
        found.append(time.perf_counter() - begun)
    return found


def show(name: str, seconds: list[float]) -> None:
    """Prints the times of requests."""
    least, half, most = (1e3 * x for x in np.percentile(seconds, (0, 50, 99)))
    print(f"{name:32} least {least:6.2f} ms  p50 {half:6.2f}  p99 {most:6.2f}", flush=True)


if __name__ == "__main__":
    run(main)

"""Serves an artifact over HTTP.

    python -m dlrm_jax serve kaggle --port=8000
    curl localhost:8000/predict -d '{"rows": [{"price": 1.5, "shop": "a", "viewed": ["x", "y"]}]}'
    python -m dlrm_jax serve models --watch=10 --versions=2 --token_file=token

The directory is an artifact of ``dlrm_jax export``, or holds artifacts named by numbers, of which
the newest are served. Or it is, or holds, models of requests (``experiments.long_history
--export``), whose requests are rows of the log, as JSON; or models of sequences
(``experiments.next_item --export``), whose requests are histories. Of artifacts, ``POST /predict``
takes raw rows as JSON or Arrow, and maps them by the code of preprocessing. ``/v2/…`` is the Open
Inference Protocol, with its binary extension; ``/metrics`` is for Prometheus.

Requests that come while the model works are answered together. Beyond ``--queue_rows`` a request
gets 503 with Retry-After, and so does a connection beyond ``--connections``. SIGTERM and Ctrl-C
answer what has come, then end.
"""

from __future__ import annotations

import gc
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dlrm_jax.artifact.manifest import kind_of
from dlrm_jax.cli.flags import FLAGS, mark_required, require
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.serving import log_format
from dlrm_jax.serving.versions import versions_in

flags.DEFINE_string(
    "artifact",
    None,
    "Directory of an artifact, or of artifacts named by numbers; such as kaggle.",
)
flags.DEFINE_string(
    "name",
    None,
    "Name of the model in paths, whatever 'export' called it; without it, that of the directory; "
    "such as ctr.",
)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; such as 0.0.0.0 for all.")
flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for a free one; such as 80.", 0, 65535)
flags.DEFINE_integer("versions", 1, "Newest versions that are served; such as 2.", 1)
flags.DEFINE_float(
    "watch", 0, "Seconds between two looks for new versions; 0 for none; such as 10.", 0, 1e9
)
flags.DEFINE_integer("batch_size", 1024, "Most rows of a batch; such as 8192.", 1)
flags.DEFINE_integer(
    "batch_tokens",
    0,
    "Most actions of the histories that a model of requests encodes together; 0 for those of the "
    "longest one; such as 8192.",
    0,
)
flags.DEFINE_integer("queue_rows", 16384, "Most rows that wait; such as 4096.", 1)
flags.DEFINE_integer("max_rows", 8192, "Most rows of a request; such as 1000.", 1)
flags.DEFINE_float("max_mib", 16, "Most MiB of a request; such as 1.", 0.001, 1e9)
flags.DEFINE_float(
    "timeout", 10, "Seconds after which a request is given up; such as 0.1.", 0.001, 1e9
)
flags.DEFINE_integer("connections", 1000, "Most connections of clients; such as 100.", 1)
flags.DEFINE_integer(
    "keep_alive", 60, "Seconds after which a silent connection is closed; such as 5.", 1, 10**9
)
flags.DEFINE_string("token_file", None, "File of a token that requests must bear; such as token.")
flags.DEFINE_string(
    "fade", None, "Schedule of features that are faded, a JSON file; such as fade.json."
)
flags.DEFINE_integer(
    "drift_rows",
    50_000,
    "Number of the last rows whose predictions are compared with those of the tested split; such "
    "as 10000.",
    1,
)
flags.DEFINE_enum("log_format", "text", log_format.FORMATS, "Lines of the log on standard error.")
flags.DEFINE_float(
    "log_requests",
    0,
    "Share of the requests that the log has a line about, besides those that fail; 1 for all; "
    "such as 0.01.",
    0,
    1,
)
mark_required("artifact")


def main() -> None:
    """Loads, listens, and ends when it is told to."""
    require("artifact")
    try:
        from dlrm_jax.serving.http_messages import Limits
        from dlrm_jax.serving.row_models import RowModels
        from dlrm_jax.serving.server import Options, Server, listen, unanswered
    except ModuleNotFoundError as error:
        raise UserError(
            f"serve: {error.name} isn't installed; run pip install -e '.[serve]' in the checkout"
        ) from error
    directory = Path(FLAGS.artifact)
    token = read_token(Path(FLAGS.token_file)) if FLAGS.token_file else ""
    name = FLAGS.name or directory.resolve().name
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--name: expected letters, digits, '.', '-' and '_', got {name!r}")
    limits = Limits(int(FLAGS.max_mib * 2**20), FLAGS.max_rows, FLAGS.timeout)
    options = Options(
        name,
        FLAGS.versions,
        FLAGS.watch,
        FLAGS.batch_size,
        FLAGS.queue_rows,
        limits,
        token,
        FLAGS.connections,
        FLAGS.keep_alive,
        fade=Path(FLAGS.fade) if FLAGS.fade else None,
        drift_rows=FLAGS.drift_rows,
        log_requests=FLAGS.log_requests,
        batch_tokens=FLAGS.batch_tokens,
    )
    kind: Any = RowModels
    kinds = {kind_of(version.directory) for version in versions_in(directory)}
    # Other kinds import the code of training, which artifacts do without.
    if "sequential" in kinds:
        from dlrm_jax.sequential_serving.sequence_models import SequenceModels

        kind = SequenceModels
    elif kinds - {""}:
        from dlrm_jax.request_serving.request_models import RequestModels

        kind = RequestModels
    if FLAGS.batch_tokens and not kinds - {"", "sequential"}:
        raise UserError(
            "--batch_tokens: expected a model of requests, got one of rows or of sequences; leave "
            "it out"
        )
    begun = time.perf_counter()
    with listen(FLAGS.host, FLAGS.port) as listener:
        _prefer_latency()
        log_format.configure(FLAGS.log_format)
        start("1x1")
        server = Server(directory, options, kind)
        # What is there stays, so collections of garbage needn't look through it, which takes tens
        # of milliseconds. A version that goes is freed without them.
        gc.collect()
        gc.freeze()
        host, port = listener.getsockname()[:2]
        status(
            f"serving {name}, version {', '.join(server.repository.versions)}, on "
            f"http://{f'[{host}]' if ':' in host else host}:{port} "
            f"(ready in {time.perf_counter() - begun:.1f} s)"
        )
        signal.signal(signal.SIGHUP, lambda *_: server.stop())  # uvicorn knows the others
        try:
            server.run(listener)
        finally:  # the signal that ended it is raised again
            log_format.end()
            status(unanswered(server.unanswered))


def _prefer_latency() -> None:
    """Settings of Python and JAX, before its first device, that shorten the way of few rows."""
    # The model's thread and the event loop take turns: by default one waits 5 ms for the other.
    sys.setswitchinterval(5e-4)
    # The model's thread waits for the result, so it computes itself, without a change of threads.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def read_token(path: Path) -> str:
    """The token of a file.

    Raises:
        UserError: there is none.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token_file: cannot read {path}: {error}") from error
    if not token or not token.isascii() or any(x.isspace() for x in token):
        raise UserError(f"--token_file: expected one word of ASCII characters in {path}")
    return token

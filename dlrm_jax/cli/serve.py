"""Serves an artifact over HTTP.

    python -m dlrm_jax serve kaggle --port=8000
    curl localhost:8000/predict -d '{"rows": [{"price": 1.5, "shop": "a", "viewed": ["x", "y"]}]}'
    python -m dlrm_jax serve models --watch=10 --versions=2 --token_file=token

The directory is an artifact of ``dlrm_jax export``, or holds artifacts named by numbers, of which
the newest are served. ``POST /predict`` takes raw rows as JSON or as an Arrow stream, and maps them
by the code of preprocessing. ``/v2/…`` is the Open Inference Protocol, with its binary extension;
``/metrics`` is for Prometheus.

Requests that come while the model works are answered together. Beyond ``--queue_rows`` a request
gets 503 with Retry-After. SIGTERM and Ctrl-C answer what has come, then end.
"""

from __future__ import annotations

import functools
import json
import logging
import socket
import threading
import time
from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, mark_required, require
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.repository import Repository, Version, versions_in
from dlrm_jax.serving.served_model import ServedModel

try:
    import uvicorn

    from dlrm_jax.serving.app import App, Limits
    from dlrm_jax.serving.server_metrics import ServerMetrics
except ImportError as error:
    raise UserError(
        f"serve: {error.name} isn't installed; install it with pip install 'dlrm-jax[serve]'"
    ) from error

flags.DEFINE_string(
    "artifact",
    None,
    "Directory of an artifact, or of artifacts named by numbers; such as kaggle.",
)
flags.DEFINE_string(
    "name", None, "Name of the model in paths; without it, that of the directory; such as ctr."
)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; such as 0.0.0.0 for all.")
flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for a free one; such as 80.", 0, 65535)
flags.DEFINE_integer("versions", 1, "Newest versions that are served; such as 2.", 1)
flags.DEFINE_float(
    "watch", 0, "Seconds between two looks for new versions; 0 for none; such as 10.", 0
)
flags.DEFINE_integer("batch_size", 1024, "Most rows of a batch; such as 8192.", 1)
flags.DEFINE_integer("queue_rows", 16384, "Most rows that wait; such as 4096.", 1)
flags.DEFINE_integer("max_rows", 8192, "Most rows of a request; such as 1000.", 1)
flags.DEFINE_float("max_mib", 16, "Most MiB of a request; such as 1.", 0.001)
flags.DEFINE_float("timeout", 10, "Seconds after which a request is given up; such as 0.1.", 0.001)
flags.DEFINE_string("token_file", None, "File of a token that requests must bear; such as token.")
mark_required("artifact")


def main() -> None:
    """Loads, listens, and ends when it is told to."""
    require("artifact")
    directory = Path(FLAGS.artifact)
    token = read_token(Path(FLAGS.token_file)) if FLAGS.token_file else ""
    versions_in(directory)
    begun = time.perf_counter()
    start("1x1")
    log_as_json()
    name = FLAGS.name or directory.resolve().name
    metrics = ServerMetrics(name)
    load = functools.partial(load_version, metrics=metrics)
    repository = Repository(directory, load, FLAGS.versions)
    limits = Limits(int(FLAGS.max_mib * 2**20), FLAGS.max_rows, FLAGS.timeout)
    app = App(name, repository, limits, metrics, token)
    with listening(FLAGS.host, FLAGS.port) as listener:
        port = listener.getsockname()[1]
        status(
            f"serving {name}, version {', '.join(repository.versions)}, on "
            f"http://{FLAGS.host}:{port} (ready in {time.perf_counter() - begun:.1f} s)"
        )
        ended = threading.Event()
        if FLAGS.watch:
            watch = functools.partial(repository.watch, FLAGS.watch, ended)
            threading.Thread(target=watch, name="watch", daemon=True).start()
        config = uvicorn.Config(
            app.routes(),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=int(FLAGS.timeout) + 1,
        )
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            ended.set()
            repository.close()
            status("all requests are answered")


def load_version(version: Version, metrics: ServerMetrics) -> ServedModel:
    """Loads a version, and compiles its programs."""
    predictor = Predictor.load(version.directory, batch_size=FLAGS.batch_size)
    observer = metrics.observer(version.name, predictor)
    model = ServedModel(version.name, predictor, FLAGS.batch_size, FLAGS.queue_rows, observer)
    model.warm_up()
    return model


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the port is taken, or the address isn't one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"--host, --port: cannot listen on {host}:{port}: {error}; is another server running? "
            f"--port=0 takes a free port"
        ) from error


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


class JsonFormatter(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Writes the log of the server to standard error, as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in ("dlrm_jax", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING if name == "uvicorn" else logging.INFO)

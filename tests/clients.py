"""A real server in a thread, and a client of it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from dlrm_jax.serving.row_models import RowModels
from dlrm_jax.serving.server import Options, Server, listen


class Client(NamedTuple):
    port: int
    server: Server

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body (JSON is read) and headers of a response."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            content = response.read()
            found = dict(response.getheaders())
            is_json = found.get("content-type") == "application/json"
            return response.status, json.loads(content) if is_json else content, found

    def predict(self, rows: Any) -> tuple[int, Any]:
        return self.ask("POST", "/predict", {"rows": rows})[:2]


@contextlib.contextmanager
def serving(directory: Path, kind: Any = RowModels, **options: Any) -> Iterator[Client]:
    server = Server(directory, Options("small", **{"batch_size": 16, **options}), kind)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=[listener])
        thread.start()
        try:
            yield Client(listener.getsockname()[1], server)
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()

"""The lines of the server's log, on standard error: text for people, or JSON for programs."""

from __future__ import annotations

import datetime
import json
import logging
from typing import Any

from dlrm_jax.serving.line_limit import LineLimit

FORMATS = ("text", "json")

_LIBRARIES = ("uvicorn", "py.warnings")


class JsonFormatter(logging.Formatter):
    """A line of JSON for each record, with the fields of its ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A line of text for each record, with name=value for each of its ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and those of a traceback."""
        # Values may come from clients: as JSON they have no line breaks.
        fields = " ".join(f"{x}={_shown(value)}" for x, value in _flat(_fields_of(record)).items())
        parts = [_time_of(record), record.levelname.lower(), record.getMessage(), fields]
        line = " ".join(filter(None, parts))
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return f"{line}\n{trace}" if trace else line


def configure(kind: str) -> None:
    """Writes the logs of this package and of the server's libraries to standard error.

    Clients can have the libraries say something with each request, so their lines are limited.

    Args:
        kind: one of `FORMATS`.
    """
    logging.captureWarnings(True)
    for name in ("dlrm_jax", *_LIBRARIES):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter())
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
        if name in _LIBRARIES:
            logger.setLevel(logging.WARNING)
            handler.addFilter(LineLimit())


def end() -> None:
    """Writes how many lines of the libraries were left out since the last."""
    for logger in map(logging.getLogger, _LIBRARIES):
        for handler in logger.handlers:
            for limit in handler.filters:
                if isinstance(limit, LineLimit):
                    limit.end(logger)


def _time_of(record: logging.LogRecord) -> str:
    time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of fields with both names: ``ms.total``."""
    found = {}
    for name, value in fields.items():
        inner = value if isinstance(value, dict) else None
        found |= {name: value} if inner is None else {f"{name}.{x}": y for x, y in inner.items()}
    return found


def _shown(value: Any) -> str:
    plain = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
    return value if plain and value and '"' not in value else json.dumps(value)

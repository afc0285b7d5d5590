"""The programs that are compiled in a part of a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Context with a list of the programs that are compiled in it."""
    found = []

    def listen(event: str, duration_secs: float, **given) -> None:
        del duration_secs
        if event.endswith("/backend_compile_duration"):
            found.append(str(given.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

"""The source that ``--stream`` names: a folder, a Redis stream, or a Kafka topic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.folder import Folder, check_folder
from dlrm_jax.stream.position import Consumed
from dlrm_jax.stream.source import Source


def source_opener(
    name: str, schema: Schema, workdir: Path, publish: Path | None = None
) -> Callable[[tuple[Consumed, ...]], Source]:
    """A function that opens a source behind the segments that a run has read.

    Args:
        name: a folder, ``redis://HOST:PORT/KEY`` or ``kafka://HOST:PORT/TOPIC``.
        schema: meaning of the columns.
        workdir: directory of the run, which needn't exist.
        publish: directory of its publications; None for none.

    Raises:
        UserError: there is no such kind of source, or see `check_folder`.
    """
    scheme, separator, _ = name.partition("://")
    if not separator:
        check_folder(Path(name), workdir, publish)
        return lambda consumed: Folder(Path(name), schema, consumed)
    if scheme in ("redis", "rediss"):
        from dlrm_jax.stream.redis_stream import RedisStream

        opened: Callable[..., Source] = RedisStream
    elif scheme == "kafka":
        from dlrm_jax.stream.led_topic import open_topic

        opened = open_topic
    else:
        raise UserError(
            f"stream: expected a folder, redis://HOST:PORT/KEY or kafka://HOST:PORT/TOPIC, got "
            f"{scheme}://…; give one of them"
        )
    opened(name, schema)  # what is wrong with the URL is said before the run begins
    return functools.partial(opened, name, schema)

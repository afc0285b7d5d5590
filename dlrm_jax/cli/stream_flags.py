"""The flags of ``dlrm_jax train --stream``, apart from the run, which needs Polars."""

from __future__ import annotations

from absl import flags

OF_STREAMS = (
    "schema", "stream_idle_seconds", "stream_checkpoint_seconds", "stream_window", "id_clock",
)  # fmt: skip
"""Flags that are read with ``--stream`` alone."""


def define_stream_flags() -> None:
    """``--stream`` and the flags that are read with it."""
    flags.DEFINE_string(
        "stream",
        None,
        "What to train on as it comes: a folder of Parquet or Arrow segments, in the order of "
        "their names, redis://HOST:PORT/KEY, or kafka://HOST:PORT/TOPIC; such as segments.",
    )
    flags.DEFINE_string(
        "schema",
        None,
        "JSON file with the meaning of the columns of --stream, as `dlrm_jax preprocess` takes it; "
        "such as schema.json.",
    )
    flags.DEFINE_float(
        "stream_idle_seconds",
        0.0,
        "Seconds without a new segment that end the run; 0 for never; such as 60.",
        0,
    )
    flags.DEFINE_float(
        "stream_checkpoint_seconds",
        60.0,
        "Seconds between checkpoints of a stream, besides those of --checkpoint_every; 0 for none; "
        "such as 10.",
        0,
    )
    flags.DEFINE_enum(
        "id_clock",
        "steps",
        ["steps", "seconds"],
        "Clock of --dynamic_ids, which max_age is in: steps, or seconds of the schema's timestamp.",
    )
    flags.DEFINE_integer(
        "stream_window",
        1 << 17,
        "Examples of each window whose metrics are recorded, predicted before they are trained "
        "on; such as 1000000.",
        1,
    )

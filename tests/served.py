"""Logs as the arrays that a model predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.serving import LogEncoder


def encode_logs(paths: Sequence[Path], prepared: Path) -> list[Examples]:
    """The examples of each file, with the ids of a prepared directory."""
    encoder = encoder_of(prepared)
    return [joined([chunk.examples for chunk in encoder.files([path])]) for path in paths]


def joined(chunks: Sequence[Examples]) -> Examples:
    arrays = [{x: np.asarray(y) for x, y in chunk.arrays.items()} for chunk in chunks]
    return Examples.of({x: np.concatenate([each[x] for each in arrays]) for x in arrays[0]})


def encoder_of(prepared: Path) -> LogEncoder:
    return LogEncoder(prepared, Metadata.read(prepared).fingerprint)


def arrays_of(examples: Examples) -> list[np.ndarray]:
    return [np.asarray(array) for array in examples.arrays.values()]

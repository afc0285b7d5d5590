"""Loads the value of ``--data``: a directory of prepared arrays, or a raw file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import find_copy, preprocess


def load_dataset(path: Path, cache_dir: Path, min_count: int = 1, split: str = "") -> Dataset:
    """Loads a directory of arrays, or prepares a raw file once and keeps the arrays in a cache.

    Several processes may call it at the same time. If they share a cache, one makes the arrays and
    the others wait; otherwise each makes its own.

    Args:
        path: directory made by `preprocess` or by TorchRec's scripts, or a file in Criteo's text or
            binary form.
        cache_dir: directory for the arrays of raw files. It needs about as much space as the
            uncompressed text, and twice as much while arrays are made.
        min_count: minimum number of occurrences in the training split of a raw file; rarer values
            share one id.
        split: rule of the split of a raw file, see `split_rule`; empty for that by days.

    Raises:
        UserError: the data can't be read, are malformed (the message names file, line and column)
            or too few; the cache can't be written.
    """
    if path.is_dir():
        return load_directory(path)
    options = Options(min_count=min_count, split=split)
    path = path.resolve()
    name = json.dumps([str(path), options.to_json()]).encode()
    entry = cache_dir / f"{path.stem}-{hashlib.blake2b(name, digest_size=8).hexdigest()}"
    if not entry.exists() and (copy := find_copy(path, cache_dir, options)):
        return load_directory(copy)
    preprocess([path], entry, options, replace=True)
    return load_directory(entry)

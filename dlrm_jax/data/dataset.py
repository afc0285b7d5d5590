"""What ``--data`` names: a directory of prepared arrays, or a raw file that is prepared once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess


def load_dataset(path: Path, cache_dir: Path, min_count: int = 1) -> Dataset:
    """Loads a directory of arrays, or a raw file through a cache of such directories.

    Several processes may call it at once: where they share a cache, one makes the arrays and the
    others wait for them, otherwise each makes its own.

    Args:
        path: what `preprocess` or TorchRec's scripts have made, or Criteo's text or binary form.
        cache_dir: where arrays made of raw files are kept; needs about as much room as the
            uncompressed text, and as much again while they are made.
        min_count: values that the training part of a raw file holds less often share one id.

    Raises:
        UserError: the data can't be read, are malformed (names file, line and column) or too few;
            the cache can't be written.
    """
    if path.is_dir():
        return load_directory(path)
    options = Options(min_count=min_count)
    path = path.resolve()
    name = json.dumps([str(path), options.to_json()]).encode()
    entry = cache_dir / f"{path.stem}-{hashlib.blake2b(name, digest_size=8).hexdigest()}"
    preprocess([path], entry, options, replace=True)
    return load_directory(entry)

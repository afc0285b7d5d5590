"""Parsed lines kept on disk by column, while vocabularies are built that need whole columns."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt32

from dlrm_jax.data.criteo_text import CATEGORICALS, INTEGERS, RawBlock


class Columns:
    """N lines in one file for each categorical feature and one each for what else is on a line.

    Args:
        directory: Where `write` put them.
    """

    def __init__(self, directory: Path):
        self.labels: Float32[np.ndarray, " N"] = _map(directory / "labels", np.float32)
        self.dense: Float32[np.ndarray, "N 13"] = _map(directory / "dense", np.float32).reshape(
            -1, len(INTEGERS)
        )
        self._missing: UInt32[np.ndarray, " N"] = _map(directory / "missing", np.uint32)
        self._values = [_map(directory / name, np.uint32) for name in CATEGORICALS]

    @classmethod
    def write(cls, directory: Path, blocks: Iterable[RawBlock]) -> "Columns":
        """Writes blocks of lines one after the other; their number needn't be known."""
        directory.mkdir()
        with ExitStack() as stack:
            files = {
                name: stack.enter_context((directory / name).open("wb"))
                for name in ("labels", "dense", "missing", *CATEGORICALS)
            }
            for block in blocks:
                files["labels"].write(block.labels.data)
                files["dense"].write(block.dense.data)
                files["missing"].write(block.missing.data)
                for name, values in zip(CATEGORICALS, block.values, strict=True):
                    files[name].write(values.data)
        return cls(directory)

    def __len__(self) -> int:
        return len(self.labels)

    def categorical(
        self, feature: int, rows: slice
    ) -> tuple[UInt32[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
        """Raw values of a feature in some rows, and where they are missing."""
        missing = (self._missing[rows] >> np.uint32(feature)) & np.uint32(1)
        return self._values[feature][rows], missing.astype(bool)


def _map(path: Path, dtype: type[np.generic]) -> np.ndarray:
    # A plain view: slices of np.memmap objects cost Python calls.
    return np.asarray(np.memmap(path, dtype, mode="r"))

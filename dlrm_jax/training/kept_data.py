"""Where the run of a checkpoint keeps the vocabularies of its data."""

from __future__ import annotations

from pathlib import Path

from dlrm_jax.data.metadata import METADATA

KEPT = "preprocessing"
"""The directory in the workdir of a run, see `inference.vocabularies`."""


def find_kept(checkpoint: Path) -> Path | None:
    """The directory with the vocabularies of a checkpoint's run, or None if it has none."""
    # As it is given first: the checkpoints may be on another disk by a link.
    for path in (checkpoint.absolute(), checkpoint.resolve()):
        copy = path.parent.parent / KEPT
        if (copy / METADATA).exists():  # a user's directory may have that name
            return copy
    return None

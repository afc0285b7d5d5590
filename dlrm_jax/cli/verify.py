"""Checks that an artifact is as `dlrm_jax export` wrote it: every byte, and its predictions.

    python -m dlrm_jax verify kaggle

All files are read and compared with their checksums. Then the artifact's 100 golden rows are
predicted, by native layers if there are kernels for them and by the program; of two towers, 100
golden queries are asked. Another processor may give other last digits; the largest difference is
printed. The exit code is 1 if a file is missing or differs, and the message names it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.cli.flags import FLAGS, mark_required, require
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.errors import DamagedArtifactError
from dlrm_jax.native import library
from dlrm_jax.retrieval import golden_queries
from dlrm_jax.serving.verify import verify

flags.DEFINE_string("artifact", None, "Directory of the artifact; such as kaggle.")
mark_required("artifact")


def main() -> None:
    """Verifies, and prints what was found."""
    require("artifact")
    start("1x1")
    directory = Path(FLAGS.artifact)
    try:
        manifest = Manifest.read(directory)
        found = golden_queries.verify(directory) if manifest.retrieval else verify(directory)
    except DamagedArtifactError as error:
        status(f"error: {error}", error=True)
        sys.exit(1)
    for name in found.others:
        status(f"note: {name} isn't part of the artifact")
    size = sum(note.bytes for note in found.manifest.files.values())
    if isinstance(found, golden_queries.Verified):
        compared = f"vectors of {found.queries} golden queries {_said(found.difference)}"
    else:
        if found.unchecked_layers:
            setting = library.forbidden()
            why = f"native kernels are not used: {setting}" if setting else "no native kernels here"
            status(
                f"note: {why}, so predictions by the artifact's layers weren't compared; those by "
                f"its program were"
            )
        (count,) = {golden.rows for golden in found.golden.values()}
        ways = [f"by {name} {_said(golden.difference)}" for name, golden in found.golden.items()]
        compared = f"predictions of {count} golden rows {', '.join(ways)}"
    status(
        f"{found.manifest.name}: {len(found.manifest.files)} files, {size:,} bytes, as they were "
        f"written; {compared}"
    )


def _said(difference: float) -> str:
    return f"differ by at most {difference:.2g}" if difference else "are equal to the last bit"

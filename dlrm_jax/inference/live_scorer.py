"""An artifact that deltas update, as what gives logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np
from jaxtyping import Float32

from dlrm_jax.artifact.updated_artifact import UpdatedArtifact
from dlrm_jax.data.arrays import Split
from dlrm_jax.inference.artifact_scorer import ArtifactScorer


@dataclasses.dataclass(frozen=True)
class LiveScorer(ArtifactScorer):
    """The newest state of an artifact, which gives all logits of one call.

    Attributes:
        artifact: artifact without deltas, which inputs and batch sizes are those of.
        live: its newest state.
    """

    live: UpdatedArtifact

    def __repr__(self) -> str:
        return repr(self.artifact)

    def logits(
        self, split: Split, batch_size: int, shared: Collection[str] = ()
    ) -> Iterator[Float32[np.ndarray, "B *_"]]:
        """See `Scorer`."""
        with self.live.reading() as artifact:
            yield from ArtifactScorer(artifact).logits(split, batch_size, shared)

"""The parts of a predictor that map raw rows to ids, if it has vocabularies or a schema."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

from dlrm_jax.data.preprocessing.raw_id_encoder import RawIdEncoder
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.errors import UserError
from dlrm_jax.inference.fading import Fading
from dlrm_jax.inference.raw_id_rows import RawIdRows
from dlrm_jax.inference.row_encoder import RowEncoder
from dlrm_jax.inference.scorer import Scorer
from dlrm_jax.inference.vocabularies import no_vocabularies


class RawRowParts:
    """What maps raw rows to ids.

    Each part raises a `UserError` if there are neither vocabularies nor the schema of a stream.
    """

    scorer: Scorer
    vocabularies: Path | None
    fingerprint: str
    schema: Schema | None

    @property
    def takes_raw_rows(self) -> bool:
        """Whether raw rows can be mapped to ids."""
        return self.vocabularies is not None or self.schema is not None

    @functools.cached_property
    def encoder(self) -> LogEncoder:
        """What maps raw rows to ids; its vocabularies are read once.

        Raises:
            UserError: there are no vocabularies, or they can't be read or have been replaced.
        """
        if self.schema:
            return RawIdEncoder(self.schema)
        if not self.vocabularies:
            why = no_vocabularies("the model", self.fingerprint)
            raise UserError(f"raw rows can't be mapped to ids: {why}; or give Examples")
        return LogEncoder(self.vocabularies, self.fingerprint)

    @functools.cached_property
    def row_encoder(self) -> RowEncoder:
        """What maps few raw rows to ids quickly, as `encoder` does."""
        return (RawIdRows if self.schema else RowEncoder)(self.encoder)

    def features_of(self, columns: Collection[str]) -> frozenset[str]:
        """The model's names of the categorical columns among some of a log.

        In the checkpoints of earlier versions they are C1, C2, … in the order of the columns.
        """
        names = self.encoder.options.schema.categorical
        pairs = zip(names, self.scorer.inputs.columns, strict=True)
        return frozenset(feature for name, feature in pairs if name in columns)

    @functools.cached_property
    def fading(self) -> Fading:
        """What puts missing values in the place of features."""
        return Fading(self.encoder, self.scorer.inputs)

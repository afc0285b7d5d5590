"""Names of features, values and days for people, as far as a run's data have any."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from dlrm_jax.config import Config
from dlrm_jax.data.day_names import day_names
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.standardization import Scales, read_scales
from dlrm_jax.inference.vocabularies import names_of


class ValueNames:
    """The names of features and of their values, as far as the run's data have any.

    Args:
        config: config of the run, which names the categorical features.
        vocabularies: directory of the vocabularies; None if there are none.

    Attributes:
        categorical: names of the categorical features.
        dense: names of the dense features.
        missing: share of all rows without a value, by dense feature; empty if that isn't known.
        days: names of the days.
        has_values: whether there are vocabularies.
    """

    def __init__(self, config: Config, vocabularies: Path | None):
        self.categorical = config.table_names
        self.dense = tuple(f"dense {i + 1}" for i in range(config.dense_features))
        self.missing: Mapping[str, float] = {}
        self.days: Sequence[str] = ()
        self.has_values = vocabularies is not None
        self._vocabularies = vocabularies
        self._transforms: dict[str, str] = {}
        self._scales = Scales()
        if vocabularies:
            metadata = Metadata.read(vocabularies)
            options = Options.from_json(metadata.made_from["options"])
            self.days = day_names(metadata, len(metadata.days), "day ")
            if len(options.schema.dense) == config.dense_features:
                self.dense = options.schema.dense
                rows = sum(metadata.days)
                self.missing = {x: metadata.missing.get(x, 0) / rows for x in self.dense}
                # TorchRec's logarithms are relative to a number of each file.
                if options.compatible in ("", "reference"):
                    transforms = map(options.schema.transform_of, self.dense)
                    self._transforms = dict(zip(self.dense, transforms, strict=True))
                    self._scales = read_scales(vocabularies, options.schema)

    def values(self, feature: str, ids: Collection[int]) -> dict[int, str]:
        """What ids stand for; their numbers without vocabularies."""
        if self._vocabularies is None:
            return {number: f"id {number}" for number in ids}
        return names_of(self._vocabularies, self.categorical.index(feature), ids)

    def counts_as(self, feature: str) -> str:
        """What a missing value of a dense feature is for the model."""
        return "the mean" if self._transforms.get(feature, "").endswith("standardize") else "0"

    def range_of(self, feature: str, low: float, high: float) -> str:
        """A range of a dense feature, as it is in the log if that is known."""
        transform = self._transforms.get(feature, "none")
        mean, deviation = self._scales.scales.get(f"d{self.dense.index(feature)}", (0.0, 1.0))
        ends = [x * deviation + mean for x in (low, high)]
        if transform.startswith("log"):
            ends = [np.expm1(end) for end in ends]
        first, last = (f"{end:.4g}" for end in ends)
        return first if first == last else f"{first} to {last}"

"""Features that are taken from some requests: who still sees them, and what the others get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xxhash
from jaxtyping import Bool, Float32, Float64, Int, UInt64

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.inference.rows import as_frame
from dlrm_jax.inference.scorer import Inputs


def request_hashes(ids: Iterable[str], salt: str) -> UInt64[np.ndarray, " N"]:
    """The hashes that requests are drawn by.

    Args:
        ids: ids of requests.
        salt: text that changes all draws, see `FadeSchedule`.
    """
    seed = xxhash.xxh3_64_intdigest(salt.encode())
    hashes = [xxhash.xxh3_64_intdigest(x.encode("utf-8", "surrogatepass"), seed) for x in ids]
    return np.array(hashes, np.uint64)


def draws(hashes: UInt64[np.ndarray, " N"], feature: str) -> Float64[np.ndarray, " N"]:
    """A number from [0, 1) for each request, which is the same each time.

    Requests with a draw below the coverage see the feature, so one that has lost it at a coverage
    of 0.5 doesn't get it back at 0.3. Features draw independently: the bits of the hash of the
    request and that of the feature's name are mixed by the finalizer of SplitMix64.

    Args:
        hashes: hashes of requests, see `request_hashes`.
        feature: name of the feature.
    """
    x = hashes ^ np.uint64(xxhash.xxh3_64_intdigest(feature.encode()))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) * 2.0**-53


def covered(
    hashes: UInt64[np.ndarray, " N"], coverages: Mapping[str, float]
) -> dict[str, Bool[np.ndarray, " N"]]:
    """Whether each request sees each feature.

    Args:
        hashes: hashes of requests, see `request_hashes`.
        coverages: share of requests that see each feature.
    """
    return {name: draws(hashes, name) < coverage for name, coverage in coverages.items()}


class Fading:
    """Puts missing values in the place of features.

    A missing value is what the encoder makes of None: for a dense feature 0 or the mean, for a
    categorical one the id of missing values, for a list an empty bag.

    Args:
        encoder: encoder of the model's raw rows.
        inputs: inputs of the model.
    """

    def __init__(self, encoder: LogEncoder, inputs: Inputs):
        schema = encoder.options.schema
        nothing = {x: [] if x in schema.bag_lengths else None for x in encoder.columns}
        frame = as_frame([nothing], encoder.columns, schema.numbers)
        missing = encoder.rows(frame, "missing values")
        self._dense: Float32[np.ndarray, " D"] = missing.dense[0]
        self._ids: Int[np.ndarray, " C"] = np.asarray(missing.ids)[0]
        ends = np.cumsum(inputs.bag_lengths).tolist()
        starts = [0, *ends[:-1]]
        self._places = {name: slice(i, i + 1) for i, name in enumerate(schema.dense)}
        self._bags = dict(zip(schema.categorical, map(slice, starts, ends), strict=True))

    @property
    def features(self) -> list[str]:
        """The names of the features, as in the log."""
        return [*self._places, *self._bags]

    def apply(self, examples: Examples, seen: Mapping[str, Bool[np.ndarray, " N"]]) -> Examples:
        """Examples that see the features that they are to see; the given ones stay as they are.

        Args:
            examples: encoded rows.
            seen: whether each row sees a feature, by its name; others see it.
        """
        faded = {name: ~rows for name, rows in seen.items() if not rows.all()}
        if not faded:
            return examples
        arrays = dict(examples.arrays)
        for name, places, missing in (
            ("dense", self._places, self._dense),
            ("ids", self._bags, self._ids),
        ):
            if chosen := [x for x in places if x in faded]:
                arrays[name] = _replaced(np.array(arrays[name]), chosen, places, missing, faded)
        return Examples.of(arrays)


def _replaced(
    array: np.ndarray,
    chosen: Sequence[str],
    places: Mapping[str, slice],
    missing: np.ndarray,
    faded: Mapping[str, Bool[np.ndarray, " N"]],
) -> np.ndarray:
    """The array, of which the chosen features' columns are overwritten where they are faded."""
    for name in chosen:
        array[faded[name], places[name]] = missing[places[name]]
    return array

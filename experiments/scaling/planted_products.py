"""Generated examples whose label depends on many products of ids, from strong to weak.

The logit is a sum of `PRODUCTS` products, each of the effects of two or three fields' ids, drawn
for itself. The n-th has a standard deviation proportional to n to the power of -0.75, so a model
that knows the first n misses a variance of about n to the power of -0.5. A spectrum like this makes
power laws of quality against size (Bahri et al., arXiv 2102.06701). Effects have a mean, so a part
of a product shows in fewer fields: without one, products of three would be as hard to find as
parities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int32

from dlrm_jax.data.generated.zipf import cumulative_zipf, zipf_quantile

FIELDS, ROWS, PRODUCTS = 8, 16, 64
"""Number of fields, ids of each, and products."""

_EXPONENT = 0.5  # of Zipf's law
_DECAY = 0.75
_STD = 2.5  # of the logit
_VARYING = 0.75  # standard deviation of an effect whose mean square is 1
_SAMPLE = 1 << 16  # examples that set the logit's mean and scale


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of the effects of some fields' ids.

    Attributes:
        fields: numbers of the fields, 2 or 3.
        effects: effect of each id of each of them.
    """

    fields: tuple[int, ...]
    effects: tuple[Float64[np.ndarray, " V"], ...]


@dataclasses.dataclass(frozen=True)
class PlantedProducts:
    """The probability of label 1, given the ids of an example.

    Attributes:
        products: products of the logit, the strongest first.
        scale: factor of their sum.
        bias: number added to it.
    """

    products: Sequence[Product]
    scale: float = 1.0
    bias: float = 0.0

    def logits(self, ids: Int32[np.ndarray, "N F"]) -> Float64[np.ndarray, " N"]:
        """The log odds of label 1."""
        columns, total = np.ascontiguousarray(ids.T), np.zeros(len(ids))
        for each in self.products:
            pairs = zip(each.fields, each.effects, strict=True)
            total += np.prod([effects[columns[field]] for field, effects in pairs], axis=0)
        return self.scale * total + self.bias


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Examples and what is known of them.

    Attributes:
        ids: ids, [N, F].
        labels: labels, [N].
        logits: log odds of label 1, [N].
    """

    ids: Int32[np.ndarray, "N F"]
    labels: Float32[np.ndarray, " N"]
    logits: Float64[np.ndarray, " N"]


def planted_products(seed: int) -> PlantedProducts:
    """Draws the products; the logit has mean 0 and a standard deviation of 2.5.

    Args:
        seed: seed of the draws.
    """
    rng = np.random.default_rng([seed, 0])
    probabilities = np.diff(cumulative_zipf(np.arange(ROWS + 1), ROWS, _EXPONENT))
    products = []
    for number in range(PRODUCTS):
        order = 2 + number % 2
        fields = tuple(int(field) for field in rng.permutation(FIELDS)[:order])
        effects = rng.choice([-1.0, 1.0], (order, ROWS)) * rng.uniform(0.5, 1.5, (order, ROWS))
        effects -= (effects @ probabilities)[:, None]
        effects *= _VARYING / np.sqrt(effects**2 @ probabilities)[:, None]
        effects += (1 - _VARYING**2) ** 0.5
        effects[0] *= (number + 1) ** -_DECAY
        products.append(Product(fields, tuple(effects)))
    sums = PlantedProducts(products).logits(_ids(rng, _SAMPLE))
    scale = _STD / sums.std()
    return PlantedProducts(products, scale, -scale * sums.mean())


def generate(planted: PlantedProducts, examples: int, seed: int) -> Drawn:
    """Draws examples.

    Args:
        planted: cause of the labels.
        examples: number of examples.
        seed: seed of the draws.
    """
    rng = np.random.default_rng([seed, 1])
    ids = _ids(rng, examples)
    logits = planted.logits(ids)
    labels = rng.random(examples) < 1 / (1 + np.exp(-logits))
    return Drawn(ids, labels.astype(np.float32), logits)


def _ids(rng: np.random.Generator, examples: int) -> Int32[np.ndarray, "N F"]:
    return zipf_quantile(rng.random((examples, FIELDS)), ROWS, _EXPONENT)

"""The model of sequences: from the vectors of items to those of histories, and its tables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.embedding import Adam, EmbeddingCollection, Feature, Lookup, Table
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.models.bag_of_items import BagOfItems
from dlrm_jax.models.hstu import HSTU
from dlrm_jax.models.sasrec import SASRec
from dlrm_jax.models.sequence_encoder import SequenceEncoder
from dlrm_jax.sequential.packing import Shapes
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.training.learner import Learner

ITEMS, CANDIDATES, TARGETS = "items", "candidates", "targets"
"""The features, which all read the table of items: tokens, and what may follow them."""

# Options of the encoders, by the settings of the same names.
_OPTIONS = {
    "hstu": ("layers", "heads"),
    "sasrec": ("layers", "heads", "hidden_width"),
    "bag": (),
}
_SMALL = 0.02  # standard deviation of the items' vectors, as in HSTU's reference
_EPSILON = 1e-12


class NextItem(nnx.Module):
    """An encoder of histories whose results are compared with the vectors of items.

    Args:
        settings: settings of the run.
        rngs: random number generators.
    """

    def __init__(self, settings: SequentialSettings, *, rngs: nnx.Rngs):
        kinds: dict[str, Any] = {"hstu": HSTU, "sasrec": SASRec, "bag": BagOfItems}
        options = {x: getattr(settings, x) for x in _OPTIONS[settings.encoder]}
        self.encoder: SequenceEncoder = kinds[settings.encoder](
            settings.width, settings.max_length, dropout=settings.dropout, rngs=rngs, **options
        )
        self.normalize = settings.normalize

    def histories(self, vectors: Float[Array, "T d"], sequences: Sequences) -> Float[Array, "T d"]:
        """The vector of the history that ends with each token."""
        return self.items(self.encoder(vectors, sequences))

    def items(self, vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The vectors that scores are products of, of length 1 if they are normalized."""
        if not self.normalize:
            return vectors
        squares = jnp.sum(jnp.square(vectors), axis=1, keepdims=True)
        return vectors * jax.lax.rsqrt(squares + _EPSILON)


def learner_for(
    items: int,
    shapes: Shapes,
    settings: SequentialSettings,
    mesh: Mesh,
    dtype: str = "float32",
) -> Learner:
    """The learner of a model of sequences, with Adam for tables and encoder.

    Args:
        items: number of items.
        shapes: sizes of the batches.
        settings: settings of the run.
        mesh: mesh, whose devices divide the batch size.
        dtype: dtype of the items' vectors.

    Raises:
        UserError: they don't.
    """
    check_batch_size(mesh, "batch_size", settings.batch_size)
    widths = {ITEMS: shapes.row, CANDIDATES: shapes.candidates}
    if settings.negatives:  # targets that are candidates are looked up once
        widths[TARGETS] = shapes.row
    init = jax.nn.initializers.normal(_SMALL)
    collection = EmbeddingCollection(
        [Table("items", items, settings.width, dtype, init)],
        [Feature(name, max_ids=width) for name, width in widths.items()],
        [Lookup(name, name, "items", pooling="none") for name in widths],
        mesh,
        Adam(settings.rate, b2=settings.beta2),
    )
    adam = optax.adam(settings.rate, b2=settings.beta2)
    return Learner(collection, lambda rngs: NextItem(settings, rngs=rngs), adam)

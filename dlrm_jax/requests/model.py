"""The model of requests: from a history and a candidate to a logit, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dlrm_jax.attention.jagged import Candidates, Sequences, sequences_of
from dlrm_jax.embedding import Adam, EmbeddingCollection, Feature, Lookup, Table
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.models.history_encoder import HistoryEncoder
from dlrm_jax.models.hstu_candidates import HSTUCandidates
from dlrm_jax.models.mean_history import MeanHistory
from dlrm_jax.models.mlp import MLP
from dlrm_jax.models.stca import STCA
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.packing import RequestBatch, Shapes
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.training.learner import Learner

_SMALL = 0.1  # standard deviation of the initial vectors


class RequestRanker(nnx.Module):
    """An encoder of histories, and an MLP on what it says of a candidate.

    The vector of a token, or of a candidate, is the sum of those of its columns. Concatenating them
    before a linear layer says no more: what that does to each of them, its table can learn itself.

    Args:
        columns: columns of the log.
        settings: settings of the run.
        rngs: random number generators.
        dtype: type in which the MLP computes.
    """

    def __init__(
        self, columns: Columns, settings: RequestSettings, *, rngs: nnx.Rngs, dtype: str = "float32"
    ):
        self.encoder = _encoder(columns, settings, rngs)
        own = settings.encoder_width or settings.width
        if settings.encoder_width:
            sizes: Any = (settings.width, own)
            self.of_history = nnx.Linear(*sizes, rngs=rngs, dtype=dtype)
            self.of_candidates = nnx.Linear(*sizes, rngs=rngs, dtype=dtype)
        self.is_widened = bool(settings.encoder_width)
        width = 3 * own + len(columns.context) * settings.width
        self.head = MLP([width, *settings.mlp, 1], last_relu=False, rngs=rngs, dtype=dtype)
        self.history, self.candidates, self.context = (
            tuple(map(feature, [part] * len(names), names))
            for part, names in (
                ("history", columns.history),
                ("candidates", columns.candidates),
                ("context", columns.context),
            )
        )

    def __call__(
        self, pooled: Mapping[str, Float[Array, "b K d"]], batch: RequestBatch
    ) -> Float[Array, " N"]:
        """Returns the logit of each candidate of one device; that of filling has no meaning.

        Args:
            pooled: looked-up vectors of the device's ids.
            batch: the device's part of a batch.
        """
        sequences, candidates, owner = places(batch)
        context = [_flat(pooled[name])[owner] for name in self.context]
        return self.score(self.encode(pooled, sequences), pooled, context, candidates)

    def encode(self, pooled: Mapping[str, Float[Array, "b K d"]], sequences: Sequences) -> Any:
        """Returns what `score` keeps of histories.

        Args:
            pooled: looked-up vectors of the columns of histories.
            sequences: where the histories are.
        """
        tokens = _sum([pooled[name] for name in self.history])
        return self.encoder.encode(
            self.of_history(tokens) if self.is_widened else tokens, sequences
        )

    def score(
        self,
        kept: Any,
        pooled: Mapping[str, Float[Array, "b M d"]],
        context: Sequence[Float[Array, "N d"]],
        candidates: Candidates,
    ) -> Float[Array, " N"]:
        """Returns the logit of each candidate.

        Args:
            kept: result of `encode`.
            pooled: looked-up vectors of the columns of candidates.
            context: vectors of the context of each candidate, by column.
            candidates: history of each candidate.
        """
        vectors = _sum([pooled[name] for name in self.candidates])
        if self.is_widened:
            vectors = self.of_candidates(vectors)
        encoded = self.encoder.score(kept, vectors, candidates)
        together = [encoded, vectors, encoded * vectors, *context]
        return self.head(jnp.concatenate(together, axis=1))[:, 0]


def places(batch: RequestBatch) -> tuple[Sequences, Candidates, Array]:
    """Where the histories of one device's part of a batch lie, and those of its candidates.

    Returns:
        The sequences; the candidates; and the sequence of each candidate, [N], from 0 on, which is
        the last one for filling.
    """
    lengths, counts = batch.lengths.reshape(-1), batch.counts.reshape(-1)
    times, following = (x if x is None else x.reshape(-1) for x in (batch.times, batch.next_times))
    numbers = batch.numbers.reshape(-1)
    sequences = sequences_of(lengths, numbers.size, times, following, numbers)
    place = jnp.arange(batch.labels.size, dtype=jnp.int32)
    owner = jnp.searchsorted(jnp.cumsum(counts), place, side="right")
    there = owner < len(counts)
    owner = jnp.minimum(owner, len(counts) - 1)
    ends = jnp.cumsum(lengths)
    firsts = jnp.where(there, (ends - lengths)[owner], 0).astype(jnp.int32)
    of_requests = batch.request_times
    candidates = Candidates(
        firsts,
        jnp.where(there, ends[owner], 0).astype(jnp.int32),
        None if of_requests is None else of_requests.reshape(-1)[owner],
        batch.candidate_numbers.reshape(-1),
    )
    return sequences, candidates, owner


def feature(part: str, column: str) -> str:
    """The name of a column's feature."""
    return f"{part}:{column}"


def learner_for(
    columns: Columns,
    rows: Mapping[str, int],
    shapes: Shapes,
    settings: RequestSettings,
    mesh: Mesh,
    dtype: str = "float32",
) -> Learner:
    """The learner of a model of requests, with Adam for tables and encoder.

    Args:
        columns: columns of the log.
        rows: number of rows of each table.
        shapes: sizes of the batches.
        settings: settings of the run.
        mesh: mesh, whose devices divide the batch size.
        dtype: dtype of the tables, and of what the MLP computes.

    Raises:
        UserError: they don't.
    """
    check_batch_size(mesh, "batch_size", settings.batch_size)
    features, lookups = [], []
    parts = (
        ("history", columns.history, shapes.tokens),
        ("candidates", columns.candidates, shapes.candidates),
        ("context", columns.context, shapes.sequences),
    )
    for part, tables, size in parts:
        for column, table in tables.items():
            name = feature(part, column)
            features.append(Feature(name, max_ids=size))
            lookups.append(Lookup(name, name, table, pooling="none"))
    init = jax.nn.initializers.normal(_SMALL)
    collection = EmbeddingCollection(
        [Table(name, rows[name], settings.width, dtype, init) for name in columns.tables],
        features,
        lookups,
        mesh,
        Adam(settings.learning_rate),
    )
    adam = optax.adam(settings.learning_rate)

    def make(rngs: nnx.Rngs) -> RequestRanker:
        return RequestRanker(columns, settings, rngs=rngs, dtype=dtype)

    return Learner(collection, make, adam)


def _encoder(columns: Columns, settings: RequestSettings, rngs: nnx.Rngs) -> HistoryEncoder:
    sizes = settings.encoder_width or settings.width, settings.max_length
    if settings.encoder == "mean":
        return MeanHistory(*sizes, rngs=rngs)
    options: dict[str, Any] = {"layers": settings.layers, "heads": settings.heads}
    options["timed"] = columns.is_timed
    if settings.encoder == "stca":
        return STCA(*sizes, **options, rngs=rngs)
    for name in ("dropout", "attention_width", "linear_width"):
        options[name] = getattr(settings, name)
    return HSTUCandidates(*sizes, **options, rngs=rngs)


def _flat(vectors: Float[Array, "b K d"]) -> Float[Array, "T d"]:
    return vectors.reshape(-1, vectors.shape[-1])


def _sum(parts: list[Float[Array, "b K d"]]) -> Float[Array, "T d"]:
    return _flat(sum(parts[1:], start=parts[0]))

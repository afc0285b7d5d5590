"""Embedding tables split over a device mesh, with updates of only the rows that a batch reads."""

from dlrm_jax.embedding.bags import Ragged, pad_bags
from dlrm_jax.embedding.collection import EmbeddingCollection, EmbeddingState
from dlrm_jax.embedding.optimizer import SGD, Adagrad, Adam, RowWiseAdagrad
from dlrm_jax.embedding.plan import Piece, Plan
from dlrm_jax.embedding.planning.meshes import plan_meshes
from dlrm_jax.embedding.planning.planner import automatic_plan
from dlrm_jax.embedding.planning.workload import Workload
from dlrm_jax.embedding.row_optax import RowOptax
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.embedding.state import RowGradients
from dlrm_jax.embedding.table import Feature, Lookup, Table

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "EmbeddingCollection",
    "EmbeddingState",
    "Feature",
    "Lookup",
    "Piece",
    "Plan",
    "Ragged",
    "RowGradients",
    "RowOptax",
    "RowOptimizer",
    "RowWiseAdagrad",
    "Table",
    "Workload",
    "automatic_plan",
    "pad_bags",
    "plan_meshes",
]

"""Histories with a planted order, their split, and settings that learn it in a few epochs."""

from __future__ import annotations

from dlrm_jax.sequential.questions import split_of
from dlrm_jax.sequential.settings import SequentialSettings
from experiments.next_item.planted_order import generate, planted_order

ORDER = planted_order(30, 0)
LOG = generate(ORDER, users=64, longest=20, seed=1)
SPLIT = split_of(LOG, "leave_one_out")
SETTINGS = SequentialSettings(
    encoder="sasrec", width=16, layers=1, max_length=20, batch_size=16, epochs=4, dropout=0.1,
    learning_rate=0.02, patience=0, at=(5,), metric="ndcg@5",
)  # fmt: skip

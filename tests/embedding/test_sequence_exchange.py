"""Sequences are exchanged as a whole: long ones need no more collectives than short ones."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    Feature,
    Lookup,
    Table,
    automatic_plan,
)
from dlrm_jax.embedding.owner_exchange import LATER_ROUNDS
from dlrm_jax.mesh import make_mesh
from dlrm_jax.programs.collectives import collectives
from dlrm_jax.programs.hlo import Program, program_of

WIDTH, GROUPS, SHARDS, SAMPLES = 4, 2, 4, 8  # the last are those of one device


def step_of(placement: str, length: int) -> jax.stages.Traced:
    tables = [Table("items", 9000, WIDTH)]
    plan = automatic_plan(tables, SHARDS, {"items": placement})
    collection = EmbeddingCollection(
        tables,
        [Feature("history", length)],
        [Lookup("items", "history", "items", "none")],
        make_mesh((GROUPS, SHARDS)),
        SGD(0.1),
        plan,
        kernels="jax",
    )

    def step(state: Any, ids: Any) -> Any:
        vectors, routed = collection.lookup(state, ids)
        cotangents = jax.tree.map(lambda x: x + 1, vectors)
        return vectors, collection.update(state, routed, cotangents, 0)

    axes = collection.axes
    shape = GROUPS * SHARDS * SAMPLES, length
    ids = jax.ShapeDtypeStruct(shape, np.int32, sharding=axes.sharding(axes.batch))
    return jax.jit(step, donate_argnums=0).trace(collection.state_specs(), ids)


def compiled(placement: str, length: int) -> Program:
    return program_of(step_of(placement, length).lower().compile())


@pytest.mark.parametrize("placement", ["row_wise", "column_wise"])
def test_a_sequence_is_sent_once(placement: str):
    """Row numbers to the owners, vectors back, cotangents to the owners: once each."""
    sent = []
    for length in (3, 12):
        found = collectives(compiled(placement, length), LATER_ROUNDS)
        sent.append([(kind, nbytes / length) for kind, nbytes in found])
        numbers = SHARDS * SAMPLES * 4
        width = WIDTH // SHARDS if placement == "column_wise" else WIDTH
        exchanged = [nbytes for kind, nbytes in sent[-1] if kind == "all-to-all"]
        assert sorted(exchanged) == sorted([numbers, numbers * width, numbers * width])
    assert sent[0] == sent[1]


def test_fully_sharded_rows_of_a_sequence_are_asked_for_in_one_message_each():
    counts = [
        len([x for x in collectives(compiled("fully_sharded", n), LATER_ROUNDS) if x[1] > 64])
        for n in (3, 12)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("placement", ["row_wise", "column_wise", "fully_sharded"])
def test_no_gather_for_each_position(placement: str):
    """On accelerators: CPUs have one for each, see `pooling`."""
    lowered = [step_of(placement, n).lower(lowering_platforms=("tpu",)) for n in (3, 12)]
    counts = [x.as_text().count('"stablehlo.gather"') for x in lowered]
    assert counts[0] == counts[1]

"""What the compiled step holds is what the plan says: collective by collective, byte by byte."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import jax
import numpy as np
import optax
import pytest
from drawn_batches import SAMPLES
from jax.sharding import PartitionSpec
from setups import DENSE, Setup

from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    Feature,
    Lookup,
    Plan,
    Table,
    automatic_plan,
)
from dlrm_jax.embedding.collectives import collectives
from dlrm_jax.embedding.plan import fully_sharded
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.mesh_plan import planned_mesh
from dlrm_jax.embedding.planning.temporaries import temporaries
from dlrm_jax.presets import preset
from dlrm_jax.training.build import workload
from dlrm_jax.training.compiled import (
    activations,
    compile_step,
    compiled_collectives,
    planned_collectives,
)
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.penalty import Penalty
from dlrm_jax.training.tables import describe

BATCH = 4 * SAMPLES


def bytes_by_kind(collectives: list[tuple[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for kind, nbytes in collectives:
        total[kind] += nbytes
    return total


OF_ALL_ROWS = Penalty(tables=0.1, whole_tables=True)
WEIGHTED = [
    Setup("2x4", "rowwise_adagrad", placed="columns", comm_dtype="bfloat16"),
    Setup("2x4", "rowwise_adagrad", placed="devices", comm_dtype="bfloat16"),
    Setup("4x2", "rowwise_adagrad", placed="columns", penalty=OF_ALL_ROWS),
]
UNWEIGHTED = [Setup("2x4", "adagrad", accumulation_steps=4, label_weights=(1.0, 0.5))]
DENSE_PARTS = [
    Setup("2x4", "adam", shard_dense_optimizer=True),
    Setup("8x1", clip_norm=1.0, shard_dense_optimizer=True, dense_comm_dtype="bfloat16"),
]
# Micro-batches of fully sharded tables are among the pipelined steps.
OTHERS_UNWEIGHTED = [
    Setup("1x8", "adagrad", accumulation_steps=2, dense_comm_dtype="bfloat16"),
    Setup("2x4", "adagrad", placed="devices", accumulation_steps=2, clip_norm=1.0),
    Setup("2x4", "adam"),
]
OTHERS = [
    *UNWEIGHTED,
    *OTHERS_UNWEIGHTED,
    Setup("1x1"),
    Setup("4x2", "adam", placed="columns"),
    Setup("1x8", "rowwise_adagrad", placed="columns"),
    Setup("8x1", clip_norm=1.0),
    Setup("2x4", "rowwise_adagrad", placed="columns"),
    Setup("2x4", "rowwise_adagrad", placed="columns", clip_norm=1.0),
    Setup("2x4"),
    Setup("8x1", "adagrad"),
    Setup("1x8"),
    Setup("1x8", comm_dtype="bfloat16"),
    Setup("2x4", "rowwise_adagrad", placed="columns", clip_norm=1.0, penalty=OF_ALL_ROWS),
    Setup("2x4", "rowwise_adagrad", placed="devices", clip_norm=1.0, penalty=OF_ALL_ROWS),
]


@pytest.mark.parametrize(
    ("setup", "weighted"),
    [
        *((setup, True) for setup in WEIGHTED),
        *((setup, False) for setup in (*UNWEIGHTED, *DENSE_PARTS)),
        *(pytest.param(setup, True, marks=pytest.mark.thorough) for setup in OTHERS),
        *(pytest.param(setup, False, marks=pytest.mark.thorough) for setup in OTHERS_UNWEIGHTED),
    ],
    ids=lambda value: f"{value.mesh}-{value.optimizer}" if isinstance(value, Setup) else "",
)
def test_the_step_has_the_collectives_of_the_plan_and_no_other(setup, weighted):
    check(dataclasses.replace(setup, dtype="float32"), weighted)


@pytest.mark.thorough
def test_wider_numbers():
    with jax.enable_x64(True):
        check(Setup("2x4", "rowwise_adagrad", placed="columns", clip_norm=1.0), weighted=True)


def test_an_optimizer_that_reads_whole_parameters():
    learner = Setup("2x4", dtype="float32", shard_dense_optimizer=True).learner()
    learner.dense_optimizer = optax.lamb(0.01)
    check_learner(learner, False)
    norms = [x for x in planned_collectives(learner, BATCH) if "norms" in x.purpose]
    assert {x.kind for x in norms} == {"all-reduce"}
    assert sum(x.nbytes for x in norms) < 100  # single numbers


PIPELINED = [
    Setup("2x4", placed="devices", dtype="float32"),  # by default in `test_pipelined.py`
    Setup("4x2", "adagrad", placed="devices", dtype="float32", accumulation_steps=2),
]


@pytest.mark.parametrize(
    "setup",
    [pytest.param(setup, marks=pytest.mark.thorough) for setup in PIPELINED],
    ids=lambda setup: setup.mesh,
)
def test_no_more_is_sent_where_ids_are_routed_before_the_step(setup):
    check_learner(setup.learner(), True, pipelined=True)


@pytest.mark.parametrize(
    ("micro_batches", "trained"),
    [
        (2, (0, 1)),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in itertools.product((1, 2), ((0,), (1,), (0, 1)))
            if case != (2, (0, 1))
        ),
    ],
)
def test_tables_of_the_same_rows_ask_once(trained, micro_batches):
    """The first table asks for both. The first one that is trained asks for what is merged."""
    tables = [Table(f"t{i}", 100, dim, trainable=i in trained) for i, dim in enumerate((8, 1))]
    lookups = [Lookup(table.name, "f", table.name) for table in tables]
    plan = Plan(4, tuple(piece for table in tables for piece in fully_sharded(table.name)))
    own = EmbeddingCollection(
        tables, [Feature("f", 3)], lookups, "2x4", SGD(0.1), plan, None, "jax"
    )

    def step(state, ids):
        def of_part(ids):
            pooled, routed = own.lookup(state, ids)
            return pooled, own.send_cotangents(routed, pooled)

        if micro_batches == 1:
            pooled, cotangents = of_part(ids)
        else:
            _, (pooled, cotangents) = jax.lax.scan(
                lambda _, ids: (None, of_part(ids)), None, ids, unroll=True
            )
        return pooled, own.apply(state, own.coalesce(cotangents), 0)

    batch = 64
    parts = (micro_batches,) if micro_batches > 1 else ()
    sharding = own.axes.sharding(PartitionSpec(*len(parts) * [None], ("data", "model")))
    ids = jax.ShapeDtypeStruct((*parts, batch // micro_batches, 3), np.int32, sharding=sharding)
    compiled = jax.jit(step).lower(own.state_specs(), ids).compile()
    shape = {"data": 2, "model": 4}
    planned = collectives(own.layout, shape, batch, micro_batches=micro_batches)
    wanted = bytes_by_kind([(each.kind, each.nbytes) for each in planned])
    assert bytes_by_kind(compiled_collectives(compiled)) == wanted


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.thorough), 4])
def test_a_plan_counts_the_whole_batch_as_the_program_does(steps):
    config = dataclasses.replace(preset("small"), batch_size=4096, accumulation_steps=steps)
    described = describe(config)
    named = described.tables, described.features, described.lookups
    reads = workload(config, described, 2)
    plan = automatic_plan(
        described.tables,
        4,
        optimizer=described.optimizer,
        workload=reads,
        device=DEVICES["cpu"],
    )
    found = planned_mesh(*named, plan, described.optimizer, reads, DEVICES["cpu"])
    tables = EmbeddingCollection(*named, "2x4", described.optimizer, plan, None, "jax")
    shape = {"data": 2, "model": 4}
    moved = collectives(tables.layout, shape, config.batch_size, micro_batches=steps)
    assert found.collectives == moved
    assert found.temporaries == temporaries(
        tables.layout, moved, shape, config.batch_size, DEVICES["cpu"]
    )
    assert sum(each.starts > 1 for each in moved) == (3 if steps > 1 else 0)


def test_activations_are_those_of_the_samples_that_are_kept_for_gradients():
    learner = Setup("1x1", dtype="float32").learner()
    one, four = (activations(learner, samples, DENSE) for samples in (1000, 4000))
    assert four == 4 * one
    vectors = sum(learner.collection.tables[x.table].dim for x in learner.collection.lookups)
    assert one >= 4 * 1000 * (DENSE + vectors), "the first layer's input"


def check(setup: Setup, weighted: bool):
    check_learner(setup.learner(), weighted)


def check_learner(learner: Learner, weighted: bool, pipelined: bool = False):
    planned = planned_collectives(learner, BATCH, weighted)
    compiled = compiled_collectives(compile_step(learner, BATCH, DENSE, weighted, pipelined))
    wanted = bytes_by_kind([(each.kind, each.nbytes) for each in planned])
    assert bytes_by_kind(compiled) == wanted
    assert len(compiled) <= sum(each.starts for each in planned)

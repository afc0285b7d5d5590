"""From a config to what it describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.batches import Batch, TrainBatches
from dlrm_jax.data.synthetic import generate
from dlrm_jax.embedding import (
    EmbeddingCollection,
    Feature,
    Lookup,
    Plan,
    Table,
    Workload,
    automatic_plan,
)
from dlrm_jax.embedding.optimizer import RowOptimizer, row_optimizer
from dlrm_jax.embedding.planning.devices import Device, device_like
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.workload import bags_of
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import DATA, MODEL, check_batch_size
from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.processes import on_first
from dlrm_jax.training.dense import dense_optimizer
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.losses import LOSSES, class_weighted
from dlrm_jax.training.schedule import WarmupDecay


def generate_data(config: Config) -> Dataset:
    """Generated examples for the tables of a config."""
    return generate(
        config.table_rows,
        config.table_bag_lengths,
        config.dense_features,
        config.examples,
        config.zipf_exponent,
        config.seed,
    )


def for_data(config: Config, data: Dataset) -> Config:
    """The config with the tables and dense features that the data need."""
    return dataclasses.replace(
        config,
        table_rows=data.table_rows,
        bag_lengths=data.bag_lengths,
        dense_features=data.train.dense_features,
    )


def generated_batches(config: Config, count: int) -> list[Batch]:
    """The first training batches of generated data of just enough examples, on the host."""
    # 80 % of the examples are for training.
    config = dataclasses.replace(config, examples=-(-count * config.batch_size * 10 // 8))
    batches = TrainBatches(generate_data(config).train, config.batch_size, config.seed)
    return [batches[i] for i in range(count)]


def make_learner(config: Config, mesh: Mesh) -> Learner:
    """The learner of a config.

    Raises:
        UserError: the config contradicts itself or the mesh.
    """
    _check_training_batch(config, mesh)
    if config.eps and config.optimizer == "sgd":
        raise UserError(f"eps: sgd has none, got {config.eps}; leave it out")
    collection = make_collection(config, mesh)

    def make_model(rngs: nnx.Rngs) -> DLRM:
        return DLRM(
            config.dense_features,
            {lookup.name: config.embedding_dim for lookup in collection.lookups},
            config.bottom_mlp,
            config.top_mlp,
            interaction_kind=config.interaction,
            self_interaction=config.self_interaction,
            rngs=rngs,
            dtype=config.compute_dtype,
        )

    return Learner(
        collection,
        make_model,
        dense_optimizer(
            config.dense_optimizer, config.optimizer, _schedule(config), config.eps or None
        ),
        class_weighted(LOSSES[config.loss], *config.class_weights),
        config.clip_norm,
        config.accumulation_steps,
    )


def check_batch_sizes(config: Config, mesh: Mesh) -> None:
    """The mesh must divide the batches of training and evaluation.

    Raises:
        UserError: naming the field.
    """
    _check_training_batch(config, mesh)
    check_batch_size(mesh, "evaluation_batch_size", config.evaluation_batch_size)


def _check_training_batch(config: Config, mesh: Mesh) -> None:
    micro_batch = config.batch_size // config.accumulation_steps
    name = "batch_size" if config.accumulation_steps == 1 else "batch_size / accumulation_steps"
    check_batch_size(mesh, name, micro_batch)


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """What a config says of its tables: C1, C2, …, each read by the feature of its name.

    Attributes:
        tables: all tables.
        features: one a table.
        lookups: one a table.
        optimizer: of the tables that have none of their own.
    """

    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    lookups: tuple[Lookup, ...]
    optimizer: RowOptimizer


def describe(config: Config) -> Descriptions:
    """The tables of a config and who reads them.

    Raises:
        UserError: naming the field that contradicts itself.
    """
    own = {
        name: _table_optimizer(config, text)
        for name, text in config.per_table("table_optimizers").items()
    }
    unknown = set(config.frozen_tables) - set(config.table_names)
    if unknown:
        raise UserError(f"frozen_tables: no table named {', '.join(sorted(unknown))}")
    tables = [
        Table(
            name,
            rows,
            config.embedding_dim,
            dtype=config.table_dtype,
            optimizer=own.get(name),
            trainable=name not in config.frozen_tables,
            stochastic_rounding=config.stochastic_rounding,
        )
        for name, rows in zip(config.table_names, config.table_rows, strict=True)
    ]
    lengths = zip(config.table_names, config.table_bag_lengths, strict=True)
    return Descriptions(
        tuple(tables),
        tuple(Feature(name, length) for name, length in lengths),
        tuple(Lookup(name, name, name, config.pooling) for name in config.table_names),
        row_optimizer(config.optimizer, _schedule(config), _row_eps(config, config.optimizer)),
    )


def workload(config: Config, descriptions: Descriptions, data_groups: int) -> Workload:
    """What one step of a config, or one of its micro-batches, asks of its tables."""
    return Workload(
        config.batch_size // config.accumulation_steps,
        data_groups,
        config.zipf_exponent,
        bags_of(descriptions.features, descriptions.lookups),
    )


def make_collection(config: Config, mesh: Mesh) -> EmbeddingCollection:
    """The tables of a config on a mesh, placed by its plan or by an automatic one."""
    described = describe(config)
    if config.plan:
        plan = read_plan(Path(config.plan), described.tables, mesh.shape[MODEL])
    else:
        device, limits = _devices_of(mesh)
        plan = automatic_plan(
            described.tables,
            mesh.shape[MODEL],
            config.per_table("placements"),
            optimizer=described.optimizer,
            workload=workload(config, described, mesh.shape[DATA]),
            device=device,
            limits=limits,
        )
    return EmbeddingCollection(
        described.tables,
        described.features,
        described.lookups,
        mesh,
        described.optimizer,
        plan,
        None if config.exchange_dtype == "float32" else config.exchange_dtype,
        config.kernels,
    )


def read_plan(path: Path, tables: Sequence[Table], shards: int) -> Plan:
    """The plan in a file, which must be one of these tables on so many shards.

    Raises:
        UserError: naming the file.
    """
    try:
        plan = Plan.from_json(path.read_text())
        if plan.shards != shards:
            raise UserError(f"the plan is for {plan.shards} shards, the mesh has {shards}")
        plan.check(tables)
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"--plan={path}: {error}") from error
    return plan


def _devices_of(mesh: Mesh) -> tuple[Device, Limits]:
    """What the planner is to know of a mesh: its devices, and what they have room for."""
    first = mesh.local_devices[0]
    device = device_like(first.device_kind)
    # The same in all processes, which must make the same plan. CPUs don't tell.
    memory = on_first(lambda: (first.memory_stats() or {}).get("bytes_limit"))
    if memory is None:
        return device, Limits()
    device = dataclasses.replace(device, memory=memory)
    return device, Limits(memory=device.memory_for_tables)


def _table_optimizer(config: Config, text: str) -> RowOptimizer:
    name, separator, rate = text.partition(":")
    try:
        base = float(rate) if separator else config.learning_rate
    except ValueError:
        raise UserError(
            f"table_optimizers: expected OPTIMIZER or OPTIMIZER:LEARNING_RATE, got {text!r}"
        ) from None
    return row_optimizer(name, _schedule(config, base), _row_eps(config, name))


def _row_eps(config: Config, optimizer: str) -> float | None:
    return None if optimizer == "sgd" else config.eps or None


def _schedule(config: Config, base: float | None = None) -> WarmupDecay:
    return WarmupDecay(
        config.learning_rate if base is None else base,
        config.warmup_steps,
        config.decay_start,
        config.decay_steps,
    )

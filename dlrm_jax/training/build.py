"""The tables and the learner that a config describes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from dlrm_jax.backend import backend_of
from dlrm_jax.config import Config
from dlrm_jax.device_memory import memory_limit
from dlrm_jax.embedding import EmbeddingCollection, Plan, Table, Workload
from dlrm_jax.embedding.kernel_dispatch import check_demanded
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.optimizer import row_optimizer
from dlrm_jax.embedding.planning.devices import Device, device_like
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.meshes import plan_on_mesh
from dlrm_jax.embedding.planning.workload import bags_of
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import renamed_hint
from dlrm_jax.host_tables.cached_collection import CachedCollection, device_tables
from dlrm_jax.mesh import DATA, MODEL, check_batch_size
from dlrm_jax.models.ensemble import Ensemble
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.processes import on_process_0
from dlrm_jax.training.dense import dense_optimizer
from dlrm_jax.training.label_settings import weight_of_label
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.losses import Loss, class_weighted, make_loss
from dlrm_jax.training.measures import check_metrics
from dlrm_jax.training.member_losses import MemberLoss
from dlrm_jax.training.model import make_model, model_class
from dlrm_jax.training.penalty import Penalty
from dlrm_jax.training.ranking_losses import RankingLoss
from dlrm_jax.training.tables import Descriptions, describe, schedule


def check_table_settings(config: Config) -> None:
    """Checks that the compression and the optimizers have an effect on the tables of a config.

    Raises:
        UserError: all tables stay whole, or one has an optimizer and is frozen.
    """
    if config.compression != "none" and max(config.table_rows) <= config.compress_above:
        raise UserError(
            f"compression: {config.compression} compresses no table, since the largest has "
            f"{max(config.table_rows):,} rows and compress_above is {config.compress_above:,}; "
            f"make compress_above smaller, or leave compression out"
        )
    named = config.per_table("table_optimizers")
    if both := [name for name in config.frozen_tables if name in named]:
        raise UserError(
            f"table_optimizers: {both[0]} is one of frozen_tables, which no optimizer updates; "
            f"leave it out of one of the two"
        )


def make_learner(
    config: Config, mesh: Mesh, feeds: bool = False, plan: Plan | None = None
) -> Learner:
    """The learner of a config.

    Args:
        config: config.
        mesh: mesh of the learner.
        feeds: whether the caller feeds tables in host memory, see `host_memory.feed_of`, or runs no
            step.
        plan: placement of the tables; None for that of the config, or for an automatic one.

    Raises:
        UserError: the config contradicts itself or the mesh, demands native kernels and none
            would run, or has tables in host memory that nothing feeds.
    """
    if config.host_tables and not feeds:
        raise UserError(
            f"host_tables: only train moves rows between host and devices, got "
            f"{','.join(config.host_tables)}; leave it out here"
        )
    check_batch_size(mesh, "batch_size", config.batch_size, config.accumulation_steps)
    described = describe(config)
    learner = Learner(
        _place(config, described, mesh, plan),
        functools.partial(make_model, config, described.composers),
        dense_optimizer(
            config.dense_optimizer, config.optimizer, schedule(config), config.eps or None
        ),
        _loss(config),
        config.clip_norm,
        config.accumulation_steps,
        penalty(config),
        weight_of_label(config),
        native_keys=config.model in MODELS,  # classes of users may do anything with keys
        shard_dense_optimizer=config.shard_dense_optimizer,
        dense_comm_dtype=_narrower(config.dense_comm_dtype),
        product_precision=config.product_precision,
    )
    check_demanded(config.kernels, learner.kernels_in_use)
    return learner


def check_config(config: Config, mesh: Mesh) -> None:
    """Checks what can be checked before the data are read, which may take long.

    Raises:
        UserError: there is no such model, optimizer, loss or metric, or the mesh doesn't divide
            the batches of training and evaluation; the message names the field.
    """
    model_class(config)
    _loss(config)
    check_metrics(config)
    row_optimizer(config.optimizer, config.learning_rate)
    check_batch_size(mesh, "batch_size", config.batch_size, config.accumulation_steps)
    check_batch_size(mesh, "evaluation_batch_size", config.evaluation_batch_size)


def _loss(config: Config) -> Loss | RankingLoss | MemberLoss:
    """The loss of a config.

    Raises:
        UserError: there is none of this name, or other settings contradict it.
    """
    loss = make_loss(config.loss)
    if isinstance(loss, MemberLoss):
        loss.check(2 if issubclass(model_class(config), Ensemble) else 0)
    if not isinstance(loss, RankingLoss | MemberLoss):
        return class_weighted(loss, *config.class_weights)
    if config.class_weights != (1, 1):
        raise UserError(
            f"class_weights: expected 1,1 for loss={config.loss}, which isn't a sum over examples, "
            f"got {','.join(f'{x:g}' for x in config.class_weights)}"
        )
    return loss


def fuses_updates(config: Config) -> bool:
    """Whether kernels of accelerators may update rows, see `Workload`."""
    return config.kernels != "jax" and not (config.clip_norm or penalty(config).tables)


def workload(config: Config, descriptions: Descriptions, data_groups: int) -> Workload:
    """The reads of a config's tables in one step."""
    return Workload(
        config.batch_size,
        data_groups,
        config.zipf_exponent,
        bags_of(descriptions.features, descriptions.lookups),
        config.accumulation_steps,
        penalty(config).of_all_rows,
        fuses_updates(config),
    )


def penalty(config: Config) -> Penalty:
    """The L2 penalty of a config."""
    return Penalty(config.table_l2, config.table_l2_rows == "all", config.dense_l2)


def make_collection(config: Config, mesh: Mesh) -> EmbeddingCollection:
    """The tables of a config on a mesh, placed by its plan or by an automatic one."""
    return _place(config, describe(config), mesh)


def _place(
    config: Config, described: Descriptions, mesh: Mesh, plan: Plan | None = None
) -> EmbeddingCollection:
    axes = MeshAxes(mesh, (DATA,), MODEL)
    tables = device_tables(described.tables, described.cache_rows)
    if plan is None and config.plan:
        plan = read_plan(config, tables, axes.shards)
    elif plan is None:
        device, limits = _devices_of(mesh)
        found = plan_on_mesh(
            tables,
            described.features,
            described.lookups,
            axes.shards,
            described.placements,
            optimizer=described.optimizer,
            workload=workload(config, described, axes.groups),
            device=device,
            limits=limits,
        )
        plan = found.plan
    make = EmbeddingCollection
    if described.cache_rows:
        make = functools.partial(CachedCollection, cache_rows=described.cache_rows)
    try:
        return make(
            described.tables,
            described.features,
            described.lookups,
            mesh,
            described.optimizer,
            plan,
            _narrower(config.comm_dtype),
            config.kernels,
        )
    except UserError as error:
        name, colon, text = str(error).partition(":")
        if name != "cache_rows":
            raise
        raise UserError(f"host_tables{colon}{text}") from error


def _narrower(dtype: str) -> str | None:
    """A dtype between devices; None if numbers keep their own."""
    return None if dtype == "float32" else dtype


def read_plan(config: Config, tables: Sequence[Table], shards: int) -> Plan:
    """Reads the plan of these tables of a config on so many shards from its file.

    Raises:
        UserError: the file has no such plan.
    """
    path = Path(config.plan)
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8-sig"))
        if plan.shards != shards:
            raise UserError(f"the plan is for {plan.shards} shards, the mesh has {shards}")
        unknown = sorted({x.table for x in plan.pieces} - {x.name for x in tables})
        if unknown and (hint := renamed_hint(unknown[0], config.features)):
            raise UserError(f"the plan places unknown table(s) {', '.join(unknown)}{hint}")
        plan.check(tables)
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"--plan={path}: {error}") from error
    return plan


def _devices_of(mesh: Mesh) -> tuple[Device, Limits]:
    """The planner's model of a mesh: its devices, and limits from their memory."""
    first = mesh.local_devices[0]
    device = device_like(first.device_kind)
    # The same in all processes, which must make the same plan.
    memory = on_process_0(lambda: memory_limit(first))
    if memory is not None:
        device = dataclasses.replace(device, memory=memory)
    elif backend_of(mesh).host_memory:
        return device, Limits()
    return device, Limits(memory=device.memory_for_tables)

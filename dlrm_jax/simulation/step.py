"""The operations of a train step on one device of a mesh, and their seconds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlrm_jax.config import Config
from dlrm_jax.embedding import Plan, Workload
from dlrm_jax.embedding.collectives import collectives
from dlrm_jax.embedding.layout import Layout, make_layout
from dlrm_jax.embedding.planning.balance import seconds_by_part
from dlrm_jax.embedding.planning.devices import Device, LinkSeconds
from dlrm_jax.embedding.planning.program import (
    PARTS,
    XLA,
    Part,
    Program,
    Resource,
)
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import DATA, MODEL
from dlrm_jax.simulation.counts import PART_OF, STEP_PARTS, Counts, StepPart
from dlrm_jax.simulation.dense import DenseModel, Product, dense_model
from dlrm_jax.simulation.schedule import Operation, Slot, schedule
from dlrm_jax.training import dense_split
from dlrm_jax.training.build import workload
from dlrm_jax.training.dense import dense_optimizer
from dlrm_jax.training.tables import Descriptions
from dlrm_jax.training.tables import schedule as learning_rate


class Options(NamedTuple):
    """How a step runs.

    Attributes:
        program: passes of tables through memory.
        pipelined: whether the ids of the next batch are exchanged during a step.
        in_network: whether switches of the network add up all-reduced gradients, as SHARP does.
        in_16_bits: whether all products of the model, and an all-reduce of its gradients, have
            numbers of 16 bits, as in programs of others.
    """

    program: Program = XLA
    pipelined: bool = False
    in_network: bool = False
    in_16_bits: bool = False


# Kernels of each stage for each slab, without those of the dense model: in the program compiled for
# eight H100 (kaggle, 2x4) a slab has about twelve.
_KERNELS = {"ids": 3, "lookup": 3, "update": 6}

_Chain = Sequence[tuple[Resource, float]]
"""Resources and seconds of operations, one after the other."""


def simulate(
    config: Config,
    described: Descriptions,
    plan: Plan,
    groups: int,
    device: Device,
    options: Options,
    counts: Counts | None = None,
) -> tuple[Slot, ...]:
    """The schedule of a train step on one device.

    Args:
        config: config of the model and the batch.
        described: its tables and lookups.
        plan: plan of these tables.
        groups: number of data-parallel groups, each with the plan's shards.
        device: model of every device.
        options: settings of the step.
        counts: work of the compiled step; None to count passes and kernels by formulas.

    Raises:
        UserError: the devices don't divide the batch, or no parameter that should be split.
    """
    samples, left = divmod(config.batch_size, groups * plan.shards)
    if left or not samples:
        raise UserError(
            f"batch_size: {config.batch_size} samples can't be split evenly over the "
            f"{groups * plan.shards} devices of mesh {groups}x{plan.shards}"
        )
    model = dense_model(config, described, samples)
    if options.in_16_bits:
        model = model.in_16_bits()
    reads = workload(config, described, groups)
    if config.comm_dtype == "bfloat16":
        options = options._replace(program=options.program._replace(sent_bytes=2))
    own = seconds_by_part(
        described.tables, plan, described.optimizer, reads, device, options.program
    )
    starts = _starts(config, described, plan, reads, device, own)
    found: list[Operation] = []

    def chain(name: str, parts: _Chain, after: tuple[str, ...]) -> tuple[str, ...]:
        """Adds operations one after the other; returns the name of the last one."""
        for resource, seconds in parts:
            if seconds:
                waits = counts is not None and not counts.beside[PART_OF[name]]
                found.append(Operation(f"{name}: {resource}", resource, seconds, after, waits))
                after = (found[-1].name,)
        return after

    def stage(name: str, after: tuple[str, ...]) -> tuple[str, ...]:
        parts: list[tuple[Resource, float]] = [
            (x.resource, own[x] + starts[x]) for x in PARTS if x.stage == name
        ]
        if counts:  # of all memory that lookups pass, of ids and vectors, too
            parts = [x for x in parts if x[0] != "memory"]
            if name in ("lookup", "update"):
                parts.append(("memory", _in_memory(counts, name, device)))
        return chain(name, parts, after)

    def products(name: StepPart, own: Sequence[Product]) -> _Chain:
        if counts is None:
            return _of_products(own, device, config)
        work = sum(x.flops / x.speed(device, config.product_precision) for x in own)
        return [("products", max(work, _in_memory(counts, name, device)))]

    after = stage("ids", ())
    after = stage("vectors", stage("lookup", () if options.pipelined else after))
    after = chain("forward", products("forward", model.forward), after)
    backward = chain("backward", products("backward", model.backward), after)
    stage("update", stage("cotangents", backward))
    after = backward
    dense = _dense_update(config, model, plan, groups, device, options)
    if counts:
        dense["dense update"] = [("memory", _in_memory(counts, "dense", device))]
    for name, parts in dense.items():
        after = chain(name, parts, after)
    return schedule(found)


def formula_kernels(
    config: Config, described: Descriptions, plan: Plan, groups: int
) -> Mapping[StepPart, int]:
    """The kernels that a simulated step counts by formulas, by part."""
    model = dense_model(config, described, config.batch_size // (groups * plan.shards))
    slabs = len(_layout(described, plan, groups).slabs)
    found = dict.fromkeys(STEP_PARTS, 0)
    for stage, count in _KERNELS.items():
        found[PART_OF[stage]] += count * slabs
    found["forward"], found["backward"] = 2 * len(model.forward), 2 * len(model.backward)
    found["dense"] = 1
    return found


def _in_memory(counts: Counts, part: StepPart, device: Device) -> float:
    """The seconds of a part's kernels: their passes through memory, and their starts."""
    return counts.nbytes[part] / device.memory_bandwidth + counts.kernels[part] * device.launch


def _dense_update(
    config: Config, model: DenseModel, plan: Plan, groups: int, device: Device, options: Options
) -> dict[str, _Chain]:
    """The exchange of the dense gradients and the update of the dense model, by name.

    Parameters that can't be split are summed and updated whole on each device.
    """
    sums = then = first = LinkSeconds(0.0, 0.0)
    is_sharded, is_rounded = config.shard_dense_optimizer, config.dense_comm_dtype == "bfloat16"
    devices = groups * plan.shards
    split = 0
    if is_sharded and devices > 1:
        dense_split.check_split(groups, plan.shards, model.shapes)
    if is_sharded or is_rounded:
        split = sum(
            math.prod(shape)
            for shape in model.shapes
            if dense_split.split_axes(groups, plan.shards, shape)
        )
    whole = model.parameters - split
    if is_rounded:  # each device adds up one part, so that nothing is added up on the way
        first = device.exchange(2 * split, devices)
    elif is_sharded:
        first = device.gather(4 * split, 1, devices)
    if is_sharded:
        then = device.gather(4 * split, 1, devices)
    elif is_rounded:
        sums = device.gather(2 * split, 1, devices)
    nbytes = (whole + 2) * (2 if options.in_16_bits else 4)  # with the loss and the weight
    added_up = device.all_reduce(nbytes, 1, devices, options.in_network)
    updated = whole + split / (devices if is_sharded else 1)
    optimizer = dense_optimizer(
        config.dense_optimizer, config.optimizer, learning_rate(config), config.eps or None
    )
    # Parameters and state are read and written, gradients are read.
    passed = updated * 4 * (3 + 2 * _slots(optimizer))
    update = passed / device.memory_bandwidth + device.launch
    return {
        "dense gradients": _on_links(device, added_up, first),
        "dense sums": _on_links(device, sums),
        "dense update": [("memory", update)],
        "dense parameters": _on_links(device, then),
    }


def _on_links(device: Device, *collectives: LinkSeconds) -> _Chain:
    both: tuple[tuple[Resource, list[float]], ...] = (
        ("links", [each.host for each in collectives if each.host]),
        ("network", [each.network for each in collectives if each.network]),
    )
    return [(resource, sum(x) + len(x) * device.latency) for resource, x in both]


def _of_products(products: Sequence[Product], device: Device, config: Config) -> _Chain:
    precision = config.product_precision
    return [("products", sum(product.seconds(device, precision) for product in products))]


def _starts(
    config: Config,
    described: Descriptions,
    plan: Plan,
    reads: Workload,
    device: Device,
    own: Mapping[Part, float],
) -> Mapping[Part, float]:
    """The seconds in which kernels and collectives of each part start."""
    groups = reads.data_groups
    layout = _layout(described, plan, groups)
    kernels, started = Counter[Part](), Counter[Part]()
    for stage, count in _KERNELS.items():
        kernels[Part(stage, "memory")] = count * len(layout.slabs)
    shape = {DATA: groups, MODEL: plan.shards}
    sent = None if config.comm_dtype == "float32" else config.comm_dtype
    several = groups * plan.shards > 1
    count = reads.micro_batches
    moved = (
        collectives(
            layout,
            shape,
            reads.batch_size,
            comm_dtype=sent,
            micro_batches=count,
            all_rows=reads.all_rows,
        )
        if several
        else ()
    )
    for each in moved:
        over_network = own[Part(each.stage, "network")] > 0 and each.axes != (MODEL,)
        started[Part(each.stage, "network" if over_network else "links")] += each.starts
    return {x: kernels[x] * device.launch + started[x] * device.latency for x in PARTS}


def _layout(described: Descriptions, plan: Plan, groups: int) -> Layout:
    tables = described.tables, described.features, described.lookups
    return make_layout(*tables, plan, described.optimizer, groups)


def _slots(optimizer: optax.GradientTransformation) -> float:
    """The numbers of the optimizer's state for each parameter."""
    weight = jax.ShapeDtypeStruct((1024,), jnp.float32)
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, weight))
    return round(sum(math.prod(x.shape) for x in state) / 1024)

"""Plans the placement of tables for a machine, on any other one.

    python -m dlrm_jax plan --preset=mlperf_v2 --mesh=16x8 --device=h100
    python -m dlrm_jax plan --mesh=1x8 --placements=C3=row_wise --output=p.json --picture=p.png
    python -m dlrm_jax plan --mesh=1x8 --preset=small --data=log --placements=item=row_wise

Prints the placement of every table, the memory, rows and communication of each device, and the
estimated time of a step's lookups and updates. ``dlrm_jax train`` takes the file as ``--plan``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from dlrm_jax.cli.config_flags import (
    OF_WHOLE_RUNS,
    check_read,
    define_run_flags,
    overridden,
    with_flags,
)
from dlrm_jax.cli.flags import FLAGS, check_new, check_pictures, refuse
from dlrm_jax.cli.pictures import save
from dlrm_jax.cli.plan_pictures import draw_mesh, draw_shards
from dlrm_jax.config import Config
from dlrm_jax.data.directory import load_directory
from dlrm_jax.embedding import automatic_plan
from dlrm_jax.embedding.collectives import Collective, collectives
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.planning.balance import LINKS, Balance, balance, seconds_by_part
from dlrm_jax.embedding.planning.devices import DEVICES, Device, device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating
from dlrm_jax.mesh import DATA, MODEL, parse_mesh
from dlrm_jax.presets import preset
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import (
    check_shared,
    check_table_settings,
    for_data,
    read_plan,
    workload,
)
from dlrm_jax.training.tables import describe

# What the placement of tables depends on is left: the tables, their optimizers, and the batch.
_UNREAD = (
    "emulate", "stochastic_rounding", "kernels", "model_options", "dense_features",
    "top_mlp", "self_interaction", "compute_dtype", "loss", "class_weights", "dense_optimizer",
    "learning_rate", "warmup_steps", "decay_start", "decay_steps", "clip_norm", "teacher", "seed",
    "dropout", "normalization", "numeric_embedding", "table_l2", "table_l2_rows", "dense_l2",
)  # fmt: skip

define_run_flags(
    "mlperf_v2",
    dict.fromkeys((*OF_WHOLE_RUNS, *_UNREAD), "a plan doesn't depend on it")
    | {"comm_dtype": "plan counts bytes in float32; python -m dlrm_jax compile counts those"},
)
flags.DEFINE_string(
    "data",
    None,
    "Directory of arrays whose tables are planned; without it, --table_rows says which; such as "
    "criteo.",
)
flags.DEFINE_enum("device", "h100", list(DEVICES), "Device that the mesh consists of.")
flags.DEFINE_float(
    "memory_gib",
    None,
    "GiB of each device for tables and their optimizer state; without it, three quarters of its "
    "memory; such as 60.",
)
flags.DEFINE_string("output", None, "File to make for the plan, as JSON; such as plan.json.")
flags.DEFINE_string(
    "picture", None, "File to draw the load of the shards in: .png or .svg; such as plan.png."
)
flags.DEFINE_string(
    "mesh_picture", None, "File to draw the mesh's tables in: .png or .svg; such as mesh.png."
)

_GIB, _MIB = 2**30, 2**20
# A limit counts as reached where less than this part of it is left.
_NEAR = 0.02


def main() -> None:
    """Tables, plan, load and estimated time."""
    config = planned_config()
    groups, shards = parse_mesh(FLAGS.mesh)
    micro_batch = config.batch_size // config.accumulation_steps
    if micro_batch % (groups * shards):
        raise UserError(
            f"batch_size: {micro_batch} samples can't be split evenly over the {groups * shards} "
            f"devices of mesh {FLAGS.mesh}"
        )
    if FLAGS.memory_gib is not None and not 0 < FLAGS.memory_gib < float("inf"):
        raise UserError(f"--memory_gib: expected a finite number above 0, got {FLAGS.memory_gib}")
    check_new("output", "picture", "mesh_picture")
    check_pictures("picture", "mesh_picture")
    described = describe(config)
    asked = workload(config, described, groups)
    kind = device(FLAGS.device)
    memory = kind.memory_for_tables if FLAGS.memory_gib is None else FLAGS.memory_gib * _GIB
    limits = Limits(memory=memory)
    if config.plan:
        plan = read_plan(config, described.tables, shards)
    else:
        plan = automatic_plan(
            described.tables,
            shards,
            described.placements,
            optimizer=described.optimizer,
            workload=asked,
            device=kind,
            limits=limits,
        )
    layout = make_layout(
        described.tables, described.features, described.lookups, plan, described.optimizer, groups
    )
    found = balance(layout, plan, asked)
    moved = collectives(layout, {DATA: groups, MODEL: shards}, micro_batch)
    parts = seconds_by_part(described.tables, plan, described.optimizer, asked, kind)

    print(plan.describe(described.tables, groups))
    print(f"\n{shards_table(found)}")
    print(f"\n{collectives_table(moved)}")
    print("without the gradients of the dense model, which python -m dlrm_jax compile prints")
    parts[f"start of {len(moved)} collectives"] = len(moved) * kind.latency
    print(f"\n{time_table(parts, kind)}")
    print(f"limited by: {binding(found, moved, parts, limits)}")
    for given in filter(None, (FLAGS.output, FLAGS.picture, FLAGS.mesh_picture)):
        Path(given).parent.mkdir(parents=True, exist_ok=True)
    if FLAGS.output:
        with creating(Path(FLAGS.output)) as path:
            path.write_text(plan.to_json(), encoding="utf-8")
        print(f"plan: {FLAGS.output}")
    if FLAGS.picture:
        save(draw_shards(found), FLAGS.picture, replace=False)
    if FLAGS.mesh_picture:
        save(draw_mesh(layout, plan, groups), FLAGS.mesh_picture, replace=False)


def planned_config() -> Config:
    """The config of the flags, with the tables of the data if there are any."""
    if not FLAGS.data:
        return with_flags(preset(FLAGS.preset))
    refuse(["table_rows", "features", "bag_lengths"], "with --data: the data decide")
    if not Path(FLAGS.data).is_dir():
        raise UserError(
            f"--data: expected a directory that python -m dlrm_jax preprocess made, got "
            f"{FLAGS.data}"
        )
    config = overridden(preset(FLAGS.preset))
    check_read([config])
    data = load_directory(FLAGS.data)
    config = for_data(config, data)
    check_table_settings(config)
    check_shared(config, data)
    return config


def shards_table(found: Balance) -> str:
    """Memory and reads of the fullest, the mean and the emptiest shard."""
    state = found.needed - found.table_bytes
    rows = []
    for name, values, unit in (
        ("tables, MiB", found.table_bytes, _MIB),
        ("optimizer state, MiB", state, _MIB),
        ("padding, MiB", found.padding, _MIB),
        ("tables and state, MiB", found.needed, _MIB),
        ("distinct rows looked up", found.reads, 1),
    ):
        digits = 0 if unit == 1 else 1
        numbers = (values.max() / unit, values.mean() / unit, values.min() / unit)
        ratio = f"{numbers[0] / numbers[1]:.3f}" if numbers[1] and name[:3] != "pad" else ""
        rows.append([name, *(f"{number:,.{digits}f}" for number in numbers), ratio])
    most, over_mean = found.device_bytes / _MIB, found.device_bytes / found.needed.mean()
    rows.append(["with padding, MiB", f"{most:,.1f}", "", "", f"{over_mean:.3f}"])
    return text_table(["on each device", "most", "mean", "least", "most/mean"], rows)


def collectives_table(moved: Sequence[Collective]) -> str:
    """The collectives of a step; equal ones are summed."""
    sums: dict[str, tuple[float, float]] = {}
    for each in moved:
        purpose = each.purpose if each.kind != "all-reduce" else each.purpose.split(" of ")[0]
        name = f"{each.kind} over {' and '.join(each.axes)}: {purpose}"
        nbytes, needed = sums.get(name, (0, 0.0))
        sums[name] = nbytes + each.nbytes, needed + each.needed
    if any(each.kind == "all-to-all" for each in moved):
        sums["all-to-all in all"] = exchange_bytes(moved)
    rows = [
        [name, f"{nbytes / _MIB:,.1f}", f"{needed / _MIB:,.1f}",
         f"{nbytes / needed:.3f}" if needed else ""]
        for name, (nbytes, needed) in sums.items()
    ]  # fmt: skip
    return text_table(["received by each device", "MiB", "needed", "ratio"], rows)


def exchange_bytes(moved: Sequence[Collective]) -> tuple[float, float]:
    """Bytes of all all-to-alls, and those that are needed."""
    exchange = [each for each in moved if each.kind == "all-to-all"]
    return sum(each.nbytes for each in exchange), sum(each.needed for each in exchange)


def time_table(parts: Mapping[str, float], kind: Device) -> str:
    """The estimated time, by part."""
    seconds = {**parts, "in all": sum(parts.values())}
    rows = [(name, f"{1e3 * x:.3f}") for name, x in seconds.items()]
    return text_table([f"estimated for {kind.name}", "ms"], rows)


def binding(
    found: Balance, moved: Sequence[Collective], parts: dict[str, float], limits: Limits
) -> str:
    """The reasons why a step isn't faster, or the plan isn't another one."""
    part = max(parts, key=lambda name: parts[name])
    reasons = [f"{part}, {parts[part] / sum(parts.values()):.0%} of the estimated time"]
    if part == LINKS:
        largest = max(moved, key=lambda each: each.nbytes)
        reasons.append(f"most of the bytes are {largest.purpose} in an {largest.kind}")
    padded, needed = exchange_bytes([each for each in moved if not each.has_room])
    for name, value, limit in (
        (f"the memory of {limits.memory / _GIB:.3g} GiB", found.device_bytes, limits.memory),
        ("padding of the exchange", padded / needed if needed else 1.0, limits.exchange),
        ("distinct rows of the busiest device", found.reads.max() / found.reads.mean(),
         limits.reads),
        ("padding of tables", found.device_bytes / found.needed.mean(), limits.table_bytes),
    ):  # fmt: skip
        if value > limit * (1 - _NEAR):
            reasons.append(f"{'over' if value > limit * 1.0001 else 'at'} the limit of {name}")
    return "; ".join(reasons)

"""Plans where tables lie, for machines that needn't be there.

    python -m dlrm_jax plan --preset=mlperf_v2 --mesh=16x8 --device=h100
    python -m dlrm_jax plan --mesh=1x8 --placements=C3=row_wise --output=p.json --picture=p.png

It prints the placement of every table, what each device holds, reads and exchanges, and the
estimated time of a step's lookups and updates. The main job takes the file as ``--plan``. Every
field of `dlrm_jax.config.Config` is a flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from dlrm_jax.cli.pictures import save
from dlrm_jax.cli.plan_pictures import draw_mesh, draw_shards
from dlrm_jax.cli.program import FLAGS, define_run_flags, run, with_flags
from dlrm_jax.embedding import automatic_plan
from dlrm_jax.embedding.collectives import Collective, collectives
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.planning.balance import LINKS, Balance, balance, seconds_by_part
from dlrm_jax.embedding.planning.devices import DEVICES, Device, device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.mesh import DATA, MODEL, parse_mesh
from dlrm_jax.presets import preset
from dlrm_jax.training.build import read_plan, workload
from dlrm_jax.training.tables import describe

define_run_flags(default_preset="mlperf_v2")
flags.DEFINE_enum("device", "h100", list(DEVICES), "what the mesh consists of")
flags.DEFINE_float("memory_gib", None, "of each device, for tables and their optimizer state; by "
                   "default three quarters of what it has")  # fmt: skip
flags.DEFINE_string("output", None, "where to write the plan, as JSON")
flags.DEFINE_string("picture", None, "where to draw what the shards hold and read: PNG or SVG")
flags.DEFINE_string("mesh_picture", None, "where to draw which device holds what: PNG or SVG")

_GIB, _MIB = 2**30, 2**20
# A limit is said to bind where less than this part of it is left.
_NEAR = 0.02


def main(argv: Sequence[str]) -> None:
    """Tables, plan, what it comes to."""
    del argv
    config = with_flags(preset(FLAGS.preset))
    groups, shards = parse_mesh(FLAGS.mesh)
    micro_batch = config.batch_size // config.accumulation_steps
    if micro_batch % (groups * shards):
        raise UserError(
            f"batch_size: {micro_batch} samples can't be split evenly over the {groups * shards} "
            f"devices of mesh {FLAGS.mesh}"
        )
    check_flags()
    described = describe(config)
    asked = workload(config, described, groups)
    kind = device(FLAGS.device)
    memory = kind.memory_for_tables if FLAGS.memory_gib is None else FLAGS.memory_gib * _GIB
    limits = Limits(memory=memory)
    if config.plan:
        plan = read_plan(Path(config.plan), described.tables, shards)
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
        described.tables, described.features, described.lookups, plan, described.optimizer
    )
    found = balance(layout, plan, asked)
    moved = collectives(layout, {DATA: groups, MODEL: shards}, micro_batch)
    parts = seconds_by_part(described.tables, plan, described.optimizer, asked, kind)

    print(plan.describe(described.tables))
    print_shards(found)
    print_collectives(moved)
    print_time(parts, kind, len(moved))
    print(f"binds: {binding(found, moved, parts, limits)}")
    if FLAGS.output:
        write_text(Path(FLAGS.output), plan.to_json())
        print(f"plan: {FLAGS.output}")
    if FLAGS.picture:
        save(draw_shards(found), FLAGS.picture)
    if FLAGS.mesh_picture:
        save(draw_mesh(layout, plan, groups), FLAGS.mesh_picture)


def check_flags() -> None:
    """What the report would end with an error for is refused before it.

    Raises:
        UserError: naming the flag.
    """
    if FLAGS.memory_gib is not None and not 0 < FLAGS.memory_gib < float("inf"):
        raise UserError(f"--memory_gib: expected a finite number above 0, got {FLAGS.memory_gib}")
    for name in ("output", "picture", "mesh_picture"):
        if not (given := FLAGS[name].value):
            continue
        path = Path(given)
        if name != "output" and path.suffix not in (".png", ".svg"):
            raise UserError(f"--{name}: expected a file named .png or .svg, got '{path}'")
        if path.is_dir():
            raise UserError(f"--{name}: expected a file, got the directory {path}; give a name")
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                raise UserError(
                    f"--{name}: expected a file in a directory, got {path}, where {parent} is a "
                    f"file; give another name"
                )


def print_shards(found: Balance) -> None:
    """What the fullest, the mean and the emptiest shard hold and read."""
    print(f"\n{'on each device':<34}{'most':>14}{'mean':>14}{'least':>14}{'most/mean':>11}")
    state = found.needed - found.table_bytes
    for name, values, unit in (
        ("tables, MiB", found.table_bytes, _MIB),
        ("optimizer state, MiB", state, _MIB),
        ("padding, MiB", found.padding, _MIB),
        ("tables and state, MiB", found.needed, _MIB),
        ("distinct rows looked up", found.reads, 1),
    ):
        digits = 0 if unit == 1 else 1
        numbers = (values.max() / unit, values.mean() / unit, values.min() / unit)
        ratio = f"{numbers[0] / numbers[1]:>11.3f}" if numbers[1] and name[:3] != "pad" else ""
        print(f"{name:<34}{''.join(f'{number:>14,.{digits}f}' for number in numbers)}{ratio}")
    print(
        f"{'with padding, MiB':<34}{found.device_bytes / _MIB:>14,.1f}{'':>28}"
        f"{found.device_bytes / found.needed.mean():>11.3f}"
    )


def print_collectives(moved: Sequence[Collective]) -> None:
    """The collectives of a step; those that are alike are summed up."""
    print(f"\n{'received by each device':<34}{'MiB':>14}{'needed':>14}{'':>14}{'ratio':>11}")
    rows = {}
    for each in moved:
        purpose = each.purpose if each.kind != "all-reduce" else each.purpose.split(" of ")[0]
        key = (each.kind, " and ".join(each.axes), purpose)
        nbytes, needed = rows.get(key, (0, 0.0))
        rows[key] = nbytes + each.nbytes, needed + each.needed
    exchange = [(each.nbytes, each.needed) for each in moved if each.kind == "all-to-all"]
    lines = [(f"{kind} over {axes}: {what}", sums) for (kind, axes, what), sums in rows.items()]
    if exchange:
        lines.append(("all-to-all in all", tuple(np.sum(exchange, axis=0))))
    for name, (nbytes, needed) in lines:
        ratio = f"{nbytes / needed:>11.3f}" if needed else ""
        print(f"{name:<48}{nbytes / _MIB:>10,.1f}{needed / _MIB:>14,.1f}{'':>4}{ratio}")


def print_time(parts: dict[str, float], kind: Device, count: int) -> None:
    """The estimate, by part."""
    parts = parts | {f"start of {count} collectives": count * kind.latency}
    print(f"\n{f'estimated for {kind.name}':<34}{'ms':>14}")
    for name, seconds in (*parts.items(), ("in all", sum(parts.values()))):
        print(f"{name:<34}{1e3 * seconds:>14.3f}")


def binding(
    found: Balance, moved: Sequence[Collective], parts: dict[str, float], limits: Limits
) -> str:
    """What keeps a step from being faster, or the plan from being another."""
    part = max(parts, key=lambda name: parts[name])
    reasons = [f"{part}, {parts[part] / sum(parts.values()):.0%} of the estimated time"]
    if part == LINKS:
        largest = max(moved, key=lambda each: each.nbytes)
        reasons.append(f"most of the bytes are {largest.purpose} in an {largest.kind}")
    exchange = [(each.nbytes, each.needed) for each in moved if each.kind == "all-to-all"]
    padded, needed = np.sum(exchange, axis=0) if exchange else (1.0, 1.0)
    for name, value, limit in (
        (f"the memory of {limits.memory / _GIB:.3g} GiB", found.device_bytes, limits.memory),
        ("padding of the exchange", padded / needed, limits.exchange),
        ("distinct rows of the busiest device", found.reads.max() / found.reads.mean(),
         limits.reads),
        ("padding of tables", found.device_bytes / found.needed.mean(), limits.table_bytes),
    ):  # fmt: skip
        if value > limit * (1 - _NEAR):
            reasons.append(f"{'over' if value > limit * 1.0001 else 'at'} the limit of {name}")
    return "; ".join(reasons)


if __name__ == "__main__":
    run(main)

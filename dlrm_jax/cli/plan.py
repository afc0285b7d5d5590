"""Plans the placement of tables for a machine, on any other one.

    python -m dlrm_jax plan --preset=mlperf_v2 --mesh=16x8 --device=h100
    python -m dlrm_jax plan --preset=mlperf_v2 --devices=128 --device=h100
    python -m dlrm_jax plan --mesh=1x8 --placements=C3=row_wise --output=p.json --picture=p.png
    python -m dlrm_jax plan --mesh=1x8 --preset=small --data=log --placements=item=row_wise
    python -m dlrm_jax plan --preset=mlperf_v2 --mesh=16x8 --device=h100 --simulate --pipelined

Prints the placement of every table, the memory, rows and communication of each device, and the
estimated time of a step's lookups and updates. ``dlrm_jax train`` takes the file as ``--plan``.
With ``--devices``, the mesh is searched, too; the two next best ones are printed beside it.
With ``--simulate`` it also prints the time of a whole train step on paper, operation by operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dlrm_jax.cli.compiled_plan import check_compiled, compiled_table, plan_and_compile
from dlrm_jax.cli.config_flags import (
    OF_WHOLE_RUNS,
    check_read,
    define_run_flags,
    overridden,
    with_flags,
)
from dlrm_jax.cli.flags import FLAGS, refuse
from dlrm_jax.cli.output_files import check_new, check_pictures
from dlrm_jax.cli.pictures import save
from dlrm_jax.cli.plan_pictures import draw_mesh, draw_shards
from dlrm_jax.cli.plan_report import (
    binding,
    collectives_table,
    meshes_table,
    shards_table,
    time_table,
)
from dlrm_jax.cli.simulation import check_simulation, define_simulation, report
from dlrm_jax.config import Config
from dlrm_jax.console import telling_time
from dlrm_jax.data.directory import load_directory
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.planning.devices import DEVICES, Device, device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import MeshPlan, planned_mesh
from dlrm_jax.embedding.planning.meshes import plan_meshes, plan_on_mesh
from dlrm_jax.embedding.planning.planner import MemoryExceededError
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating
from dlrm_jax.mesh import MOST_DEVICES, check_device_count, in_micro_batches, parse_mesh
from dlrm_jax.presets import preset
from dlrm_jax.training.build import (
    check_table_settings,
    fuses_updates,
    penalty,
    read_plan,
    workload,
)
from dlrm_jax.training.config_data import check_shared, for_data
from dlrm_jax.training.tables import Descriptions, describe

# What the placement of tables depends on is left: the tables, their optimizers, and the batch.
_UNREAD = (
    "emulate", "stochastic_rounding", "loss", "class_weights", "learning_rate",
    "warmup_steps", "decay_start", "decay_steps", "teacher", "seed", "dropout",
    "normalization", "dense_l2",
)  # fmt: skip

define_run_flags(
    "mlperf_v2", dict.fromkeys((*OF_WHOLE_RUNS, *_UNREAD), "a plan doesn't depend on it")
)
define_simulation()
flags.DEFINE_string(
    "data",
    None,
    "Directory of arrays whose tables are planned; without it, --table_rows says which; such as "
    "criteo.",
)
flags.DEFINE_integer(
    "devices",
    None,
    "Number of devices whose mesh is searched with the placements, instead of --mesh; such as 128.",
    1,
    MOST_DEVICES,
)
flags.DEFINE_enum("device", "h100", list(DEVICES), "Device that the mesh consists of.")
flags.DEFINE_float(
    "memory_gib",
    None,
    "GiB of each device for tables and their optimizer state; without it, three quarters of its "
    "memory, which emulated devices share; such as 60.",
)
flags.DEFINE_bool(
    "compiled",
    False,
    "Also compiles the plan's step for the device, which needn't be there, and plans again with "
    "less memory for tables if the step needs more than the device has.",
)
flags.DEFINE_string("output", None, "File to make for the plan, as JSON; such as plan.json.")
flags.DEFINE_string(
    "picture", None, "File to draw the load of the shards in: .png or .svg; such as plan.png."
)
flags.DEFINE_string(
    "mesh_picture", None, "File to draw the mesh's tables in: .png or .svg; such as mesh.png."
)

_GIB = 2**30


def main() -> None:
    """Tables, plan, load and estimated time."""
    config = planned_config()
    if FLAGS.devices:
        refuse(["mesh", "plan"], "with --devices: the mesh and its plan are searched")
    devices = FLAGS.devices or math.prod(parse_mesh(FLAGS.mesh))
    check_device_count(devices, "devices in --mesh")
    size, micro_batches = config.batch_size, config.accumulation_steps
    if size % (micro_batches * devices):
        where = "" if FLAGS.devices else f" of mesh {FLAGS.mesh}"
        raise UserError(
            f"batch_size: {size} samples can't be split evenly over the {devices} devices{where}"
            f"{in_micro_batches(micro_batches)}"
        )
    if FLAGS.memory_gib is not None and not 1e-9 <= FLAGS.memory_gib < float("inf"):
        raise UserError(
            f"--memory_gib: expected a finite number of at least 1e-9, which is a byte, got "
            f"{FLAGS.memory_gib}"
        )
    check_simulation(config)
    kind = device(FLAGS.device)
    if FLAGS.compiled:
        check_compiled(kind)
    check_new("output", "picture", "mesh_picture")
    check_pictures("picture", "mesh_picture")
    described = describe(config)
    limits = Limits(memory=_memory(kind, devices))
    available = limits.memory / kind.memory_for_tables * kind.memory
    compiled = None

    def plans_within(limits: Limits) -> Sequence[MeshPlan]:
        with telling_time(f"planning {len(described.tables):,} tables on {devices:,} devices"):
            return _meshes(config, described, kind, limits)

    try:
        if FLAGS.compiled:
            compiled = plan_and_compile(config, kind, limits, available, plans_within)
        meshes = compiled.plans if compiled else plans_within(limits)
    except MemoryExceededError as error:
        if not kind.emulated or FLAGS.memory_gib is not None:
            raise
        raise UserError(
            f"{error}. The {devices} emulated devices share {kind.memory_for_tables / _GIB:.3g} "
            f"GiB of one host: fewer data-parallel groups need less, and --memory_gib says what "
            f"each device may have instead"
        ) from error
    found = meshes[0]
    # The plan counts the vectors' own dtype, whatever a simulated step sends.
    dtype = "" if config.comm_dtype == "float32" else " (in float32)"
    heading = ""
    if FLAGS.devices:
        heading = f"{meshes_table(meshes, dtype)}\n\nplan for mesh {found.mesh}:\n"
    simulated = None
    if FLAGS.simulate:  # before anything is printed: it refuses some models and optimizers
        program = compiled.program if compiled else None
        simulated = report(config, described, found.plan, found.groups, kind, program)

    print(heading, end="")
    print(found.plan.describe(described.tables, found.groups))
    print(f"\n{shards_table(found, dtype)}")
    if kind.emulated:
        nbytes = devices * (found.balance.device_bytes + found.temporaries)
        print(f"all {devices} emulated devices together: {nbytes / _GIB:.3g} GiB")
    print(f"\n{collectives_table(found.collectives, dtype)}")
    print("without the gradients of the dense model, which python -m dlrm_jax compile prints")
    print(f"\n{time_table(found, kind, dtype)}")
    print(f"limited by: {binding(found, kind, limits)}")
    if compiled:
        print(f"\n{compiled_table(compiled, available)}")
    if simulated:
        print(f"\n{simulated}")
    for given in filter(None, (FLAGS.output, FLAGS.picture, FLAGS.mesh_picture)):
        Path(given).parent.mkdir(parents=True, exist_ok=True)
    if FLAGS.output:
        with creating(Path(FLAGS.output)) as path:
            path.write_text(found.plan.to_json(), encoding="utf-8")
        print(f"plan: {FLAGS.output}")
    if FLAGS.picture:
        save(draw_shards(found.balance), FLAGS.picture, replace=False)
    if FLAGS.mesh_picture:
        layout = make_layout(
            described.tables,
            described.features,
            described.lookups,
            found.plan,
            described.optimizer,
            found.groups,
        )
        save(draw_mesh(layout, found.plan, found.groups, kind), FLAGS.mesh_picture, replace=False)


def _memory(kind: Device, devices: int) -> float:
    """Bytes of each device for tables; emulated ones share those of one host."""
    if FLAGS.memory_gib is not None:
        return FLAGS.memory_gib * _GIB
    return kind.memory_for_tables / (devices if kind.emulated else 1)


def _meshes(
    config: Config, described: Descriptions, kind: Device, limits: Limits
) -> Sequence[MeshPlan]:
    """The plans of the meshes of so many devices, the fastest first, or that of the one given."""
    if not FLAGS.devices:
        return [_on_mesh(config, described, kind, limits)]
    return plan_meshes(
        described.tables,
        described.features,
        described.lookups,
        FLAGS.devices,
        described.placements,
        optimizer=described.optimizer,
        batch_size=config.batch_size,
        micro_batches=config.accumulation_steps,
        zipf_exponent=config.zipf_exponent,
        all_rows=penalty(config).of_all_rows,
        fused=fuses_updates(config),
        device=kind,
        limits=limits,
    )


def _on_mesh(config: Config, described: Descriptions, kind: Device, limits: Limits) -> MeshPlan:
    """The plan of the flag, or an automatic one, for the mesh of the flag."""
    groups, shards = parse_mesh(FLAGS.mesh)
    asked = workload(config, described, groups)
    tables = described.tables, described.features, described.lookups
    if config.plan:
        plan = read_plan(config, described.tables, shards)
        return planned_mesh(*tables, plan, described.optimizer, asked, kind)
    return plan_on_mesh(
        *tables,
        shards,
        described.placements,
        optimizer=described.optimizer,
        workload=asked,
        device=kind,
        limits=limits,
    )


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

"""Compiles a train step ahead of time: memory and communication of each device, without tables.

    python -m dlrm_jax compile --preset=mlperf_v2 --mesh=16x8
    python -m dlrm_jax compile --preset=kaggle --mesh=2x4 --target=h100

It runs anywhere: the devices of the mesh are emulated, and no table is made. Prints the bytes of
the compiled program's arguments and temporaries, and each kind of collective as planned and as
compiled by XLA. Ends with an error if the two differ.

With --target the program is that of GPUs or TPUs, which needn't be there, either. It prints the
number of its kernels, too, and doesn't compare collectives: XLA may choose others for them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter

import jax
from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import check_batch_size, parse_mesh
from dlrm_jax.presets import preset
from dlrm_jax.targets import TARGETS, target_mesh
from dlrm_jax.text_table import text_table
from dlrm_jax.training import dense_split
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.compiled import (
    compile_step,
    compiled_collectives,
    estimated_temporaries,
    planned_collectives,
)
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.operations import operations

define_run_flags(
    "mlperf_v2",
    dict.fromkeys((*OF_WHOLE_RUNS, "teacher", "seed"), "a step is compiled, and nothing is trained")
    | {"emulate": "the devices are always emulated"},
)
flags.DEFINE_enum(
    "target", None, TARGETS, "Device that the step is compiled for instead of emulated ones."
)


def main() -> None:
    """Descriptions, compilation, memory and collectives."""
    config = with_flags(preset(FLAGS.preset))
    mesh = start(FLAGS.mesh, emulate=True)
    if FLAGS.target:
        mesh = target_mesh(FLAGS.target, parse_mesh(FLAGS.mesh))
    if config.kernels == "auto":
        # The step of another machine doesn't depend on what has been built on this one.
        config = dataclasses.replace(config, kernels="jax")
    check_batch_size(mesh, "batch_size", config.batch_size, config.accumulation_steps)
    print(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    learner = make_learner(config, mesh)
    begun = time.perf_counter()
    compiled = compile_step(
        learner, config.batch_size, config.dense_features, pipelined=config.pipelined
    )
    print(f"compiled in {time.perf_counter() - begun:.1f} s")
    _print_memory(learner, compiled, config)
    if FLAGS.target:
        rows = [(name, f"{count:,}") for name, count in operations(compiled).items() if count]
        print(f"\n{text_table(('operations of the program', 'number'), rows)}")
    _print_collectives(learner, compiled, config)


def _print_memory(learner: Learner, compiled: jax.stages.Compiled, config: Config) -> None:
    memory = compiled.memory_analysis()
    assert memory is not None
    state = learner.state_specs()
    sizes = {
        "tables": _bytes_on_one_device(state.embedding.tables),
        "state of their optimizers": _bytes_on_one_device(state.embedding.slots),
        "dense model": _bytes_on_one_device(state.params),
        "state of its optimizer": _bytes_on_one_device(state.optimizer),
        **_not_split(learner, state.params),
        "all arguments of the program": memory.argument_size_in_bytes,
        "of these, updated in place": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "temporaries, estimated without activations": estimated_temporaries(
            learner, config.batch_size
        ),
    }
    rows = [(name, f"{nbytes / 2**30:.4f}") for name, nbytes in sizes.items()]
    print(f"\n{text_table(('on each device', 'GiB'), rows)}")
    device = DEVICES[FLAGS.target or "cpu"]
    of_tables = sizes["tables"] + sizes["state of their optimizers"]
    if not config.plan and of_tables > device.memory_for_tables:
        print(
            f"note: tables and their state exceed the {device.memory_for_tables / 2**30:.3g} GiB "
            f"that a device has for them; python -m dlrm_jax plan makes plans for other devices, "
            f"for --plan"
        )


def _print_collectives(learner: Learner, compiled: jax.stages.Compiled, config: Config) -> None:
    """Prints what is planned and what is compiled.

    Raises:
        UserError: the two differ in a program for emulated devices. XLA's compilers for
            accelerators may choose others.
    """
    planned = planned_collectives(learner, config.batch_size)
    rows = [
        (x.kind, ",".join(x.axes), x.purpose, f"{x.nbytes / 2**20:.3f}", f"{x.needed / 2**20:.3f}",
         f"{x.nbytes / x.needed:.3f}" if x.needed else "")
        for x in planned
    ]  # fmt: skip
    header = ("collective", "axes", "of", "MiB", "needed", "ratio")
    print(f"\n{text_table(header, rows, left=(0, 1, 2))}")
    wanted, found = Counter(), Counter()
    for each in planned:
        wanted[each.kind] += each.nbytes
    for kind, nbytes in compiled_collectives(compiled):
        found[kind] += nbytes
    kinds = sorted(wanted | found)
    rows = [(kind, f"{wanted[kind]:,}", f"{found[kind]:,}") for kind in kinds]
    print(f"\n{text_table(('bytes on each device', 'planned', 'compiled'), rows)}")
    # Layers with batch statistics have collectives of their own.
    uncounted = {"all-reduce"} if learner.has_model_state else set()
    differing = [
        f"{found[kind]:,} bytes of {kind} instead of {wanted[kind]:,}"
        for kind in kinds
        if found[kind] != wanted[kind] and kind not in uncounted
    ]
    if differing and not FLAGS.target:
        raise UserError(
            f"expected the compiled step to have the collectives of the plan, got "
            f"{' and '.join(differing)}; don't rely on the plan's estimates for this config, and "
            f"report this with your command"
        )


def _not_split(learner: Learner, params: object) -> dict[str, int]:
    """The bytes of parameters that each device updates whole, if it shouldn't."""
    if not learner.shard_dense_optimizer:
        return {}
    whole = [x for x in jax.tree.leaves(params) if not dense_split.is_split(learner.axes, x.shape)]
    return {"of its parameters, updated on each device": _bytes_on_one_device(whole)}


def _bytes_on_one_device(arrays: object) -> int:
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(arrays)
    )

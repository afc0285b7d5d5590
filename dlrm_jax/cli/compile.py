"""Compiles a train step ahead of time: memory, communication and kernels, without tables.

    python -m dlrm_jax compile --preset=mlperf_v2 --mesh=16x8
    python -m dlrm_jax compile --preset=kaggle --mesh=2x4 --target=h100
    python -m dlrm_jax compile --preset=mlperf_v2 --mesh=8x16 --target=tpu_v5e:8x16 --json=step.json

It runs anywhere: the devices of the mesh are emulated, and no table is made. Prints the bytes of
the compiled program's arguments and temporaries; its kernels, scatters and products, with a note on
each that a train step shouldn't have; and each kind of collective as planned and as compiled by
XLA. Ends with an error if the two differ.

With --target the program is that of GPUs or TPUs, which needn't be there, either; docs/targets.md
has more. --json also writes all that is printed, and more, to a file.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS, check_new
from dlrm_jax.cli.program_report import program_text
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.embedding.owner_exchange import LATER_ROUNDS
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating, write_json
from dlrm_jax.mesh import check_batch_size, parse_mesh
from dlrm_jax.presets import preset
from dlrm_jax.programs.collectives import as_all_reduces, bytes_by_kind
from dlrm_jax.programs.report import report
from dlrm_jax.targets import parse_target, target_mesh
from dlrm_jax.text_table import text_table
from dlrm_jax.training import dense_split
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.compiled import (
    compiled_collectives,
    estimated_temporaries,
    lower_step,
    planned_collectives,
)
from dlrm_jax.training.learner import Learner

define_run_flags(
    "mlperf_v2",
    dict.fromkeys((*OF_WHOLE_RUNS, "teacher", "seed"), "a step is compiled, and nothing is trained")
    | {"emulate": "the devices are always emulated"},
)
flags.DEFINE_string(
    "target",
    None,
    "Device that the step is compiled for instead of emulated ones, alone or with the number of "
    "devices; such as h100:8.",
)
flags.DEFINE_string("json", None, "File to make for all of it, as JSON; such as step.json.")


def main() -> None:
    """Descriptions, compilation, and what is read of the program."""
    config = with_flags(preset(FLAGS.preset))
    check_new("json")
    target = parse_target(FLAGS.target) if FLAGS.target else None
    mesh = start(FLAGS.mesh, emulate=True)
    if target:
        mesh = target_mesh(target, parse_mesh(FLAGS.mesh))
    if config.kernels == "auto":
        # The step of another machine doesn't depend on what has been built on this one.
        config = dataclasses.replace(config, kernels="jax")
    check_batch_size(mesh, "batch_size", config.batch_size, config.accumulation_steps)
    print(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    learner = make_learner(config, mesh)
    begun = time.perf_counter()
    lowered = lower_step(
        learner, config.batch_size, config.dense_features, pipelined=config.pipelined
    )
    compiled = compile_for(FLAGS.target, lowered)
    print(f"compiled in {time.perf_counter() - begun:.1f} s")
    ids = config.batch_size * sum(feature.max_ids for feature in learner.collection.features)
    platform = mesh.devices.flat[0].platform
    found = {
        "target": FLAGS.target, "preset": FLAGS.preset, "mesh": FLAGS.mesh,
        "batch_size": config.batch_size, "device": mesh.devices.flat[0].device_kind,
        "jax": jax.__version__,
        "state": _of_state(learner),
        **report(lowered, compiled, platform, ids // learner.axes.shards, LATER_ROUNDS),
        "estimated_temporaries": estimated_temporaries(learner, config.batch_size),
        **_collectives(learner, compiled, config),
    }  # fmt: skip
    _print_memory(found, config, target.device if target else "cpu")
    print(f"\n{program_text(found)}")
    _print_collectives(found)
    if FLAGS.json:
        with creating(Path(FLAGS.json)) as path:
            write_json(path, found)
    _check_collectives(learner, found, platform)


def compile_for(target: str | None, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a step.

    Raises:
        UserError: it doesn't fit into the memory of the target, as compilers for TPUs find.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not target or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).partition("\n")[0].partition(" :: ")[0]
        raise UserError(
            f"--target={target}: expected a step that fits into a device's memory, got {words}; "
            f"choose more model shards in --mesh, or a smaller --batch_size"
        ) from error


def _of_state(learner: Learner) -> dict[str, int]:
    """The bytes of each part of the state on one device."""
    state = learner.state_specs()
    return {
        "tables": _bytes_on_one_device(state.embedding.tables),
        "state of their optimizers": _bytes_on_one_device(state.embedding.slots),
        "dense model": _bytes_on_one_device(state.params),
        "state of its optimizer": _bytes_on_one_device(state.optimizer),
        **_not_split(learner, state.params),
    }


def _print_memory(found: Mapping[str, Any], config: Config, name: str) -> None:
    memory = found["memory"]
    sizes = {
        **found["state"],
        "all arguments of the program": memory["arguments"],
        "of these, updated in place": memory["updated_in_place"],
        "temporaries": memory["temporaries"],
        "temporaries, estimated without activations": found["estimated_temporaries"],
        "code": memory["code"],
        "arguments in the host's memory": memory["host_arguments"],
        "temporaries in the host's memory": memory["host_temporaries"],
    }
    by_need = ("code", "arguments in the host's memory", "temporaries in the host's memory")
    rows = [
        (name, f"{nbytes / 2**30:.4f}")
        for name, nbytes in sizes.items()
        if nbytes or name not in by_need
    ]
    print(f"\n{text_table(('on each device', 'GiB'), rows)}")
    device = DEVICES[name]
    of_tables = sum(found["state"][x] for x in ("tables", "state of their optimizers"))
    needed = memory["arguments"] + memory["temporaries"] + memory["code"]
    if not config.plan and of_tables > device.memory_for_tables:
        print(
            f"note: tables and their state exceed the {device.memory_for_tables / 2**30:.3g} GiB "
            f"that a device has for them; python -m dlrm_jax plan makes plans for other devices, "
            f"for --plan"
        )
    elif not device.emulated and needed > device.memory:
        print(
            f"note: the step needs {needed / 2**30:.3g} GiB, more than the "
            f"{device.memory / 2**30:.3g} GiB of a device; choose a smaller --batch_size, or more "
            f"devices"
        )


def _collectives(learner: Learner, compiled: jax.stages.Compiled, config: Config) -> dict[str, Any]:
    """Each planned collective, and the bytes of each kind as planned and as compiled."""
    planned = planned_collectives(learner, config.batch_size)
    return {
        "collectives": [dataclasses.asdict(each) for each in planned],
        "planned_bytes": bytes_by_kind((each.kind, each.nbytes) for each in planned),
        "compiled_bytes": bytes_by_kind(compiled_collectives(compiled)),
    }


def _print_collectives(found: Mapping[str, Any]) -> None:
    rows = [
        (x["kind"], ",".join(x["axes"]), x["purpose"], f"{x['nbytes'] / 2**20:.3f}",
         f"{x['needed'] / 2**20:.3f}", f"{x['nbytes'] / x['needed']:.3f}" if x["needed"] else "")
        for x in found["collectives"]
    ]  # fmt: skip
    header = ("collective", "axes", "of", "MiB", "needed", "ratio")
    print(f"\n{text_table(header, rows, left=(0, 1, 2))}")
    planned, compiled = found["planned_bytes"], found["compiled_bytes"]
    rows = [
        (kind, f"{planned.get(kind, 0):,}", f"{compiled.get(kind, 0):,}")
        for kind in sorted(planned | compiled)
    ]
    print(f"\n{text_table(('bytes on each device', 'planned', 'compiled'), rows)}")


def _check_collectives(learner: Learner, found: Mapping[str, Any], platform: str) -> None:
    """Checks that the program has the bytes of the plan.

    Raises:
        UserError: it has others.
    """
    planned, compiled = Counter(found["planned_bytes"]), Counter(found["compiled_bytes"])
    wanted = planned
    if platform == "tpu":
        wanted = as_all_reduces(planned, compiled, learner.axes.device_count)
        if wanted != planned:
            print(
                "note: XLA's compiler for TPUs makes all-reduces of whole arrays of some "
                "reduce-scatters and all-gathers"
            )
    # Layers with batch statistics have collectives of their own.
    uncounted = {"all-reduce"} if learner.has_model_state else set()
    differing = [
        f"{compiled[kind]:,} bytes of {kind} instead of {wanted[kind]:,}"
        for kind in sorted(wanted | compiled)
        if compiled[kind] != wanted[kind] and kind not in uncounted
    ]
    if differing:
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

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
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax

from dlrm_jax.backend import CPU, describe_devices
from dlrm_jax.cli.compiled_step import (
    compile_step,
    compiled_for,
    define_target,
    memory_text,
    mesh_to_compile_for,
    of_any_machine,
    write_found,
)
from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.program_report import program_text
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.presets import preset
from dlrm_jax.programs.collectives import as_all_reduces, bytes_by_kind, with_joined_sums
from dlrm_jax.text_table import text_table
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
define_target(" instead of emulated ones")


def main() -> None:
    """Descriptions, compilation, and what is read of the program."""
    mesh = mesh_to_compile_for()
    config = of_any_machine(with_flags(preset(FLAGS.preset)), mesh)
    check_batch_size(mesh, "batch_size", config.batch_size, config.accumulation_steps)
    print(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    learner = make_learner(config, mesh, feeds=True)
    print("kernels: " + ", ".join(f"{x} {y}" for x, y in learner.kernels_in_use.items()))
    lowered = lower_step(
        learner, config.batch_size, config.dense_features, pipelined=config.pipelined
    )
    ids = config.batch_size * sum(feature.max_ids for feature in learner.collection.features)
    compiled, found = compile_step(learner, lowered, ids)
    found = {
        "preset": FLAGS.preset,
        "batch_size": config.batch_size,
        "kernels_in_use": learner.kernels_in_use,
        **found,
        "estimated_temporaries": estimated_temporaries(
            learner, config.batch_size, config.dense_features
        ),
        **_collectives(learner, compiled, config),
    }
    print(f"\n{memory_text(found, found['estimated_temporaries'])}")
    _note_on_tables(found, config)
    print(f"\n{program_text(found)}")
    _print_collectives(found)
    write_found(found)
    _check_collectives(learner, found)


def _note_on_tables(found: Mapping[str, Any], config: Config) -> None:
    """Says if a plan that isn't given fits other devices than those that are compiled for."""
    device = compiled_for()
    of_tables = sum(found["state"][x] for x in ("tables", "state of their optimizers"))
    if not config.plan and of_tables > device.memory_for_tables:
        print(
            f"note: tables and their state exceed the {device.memory_for_tables / 2**30:.3g} GiB "
            f"that a device has for them; python -m dlrm_jax plan makes plans for other devices, "
            f"for --plan"
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


def _check_collectives(learner: Learner, found: Mapping[str, Any]) -> None:
    """Checks that the program has the bytes of the plan.

    Raises:
        UserError: it has others.
    """
    planned, compiled = Counter(found["planned_bytes"]), Counter(found["compiled_bytes"])
    wanted = planned
    if found["platform"] == "tpu":
        wanted = as_all_reduces(planned, compiled, learner.axes.device_count)
        if wanted != planned:
            print(
                "note: XLA's compiler for TPUs makes all-reduces of whole arrays of some "
                "reduce-scatters and all-gathers"
            )
    if found["platform"] != CPU.platform:
        norms = sum(x["nbytes"] for x in found["collectives"] if x["purpose"].startswith("norm"))
        joined = with_joined_sums(wanted, compiled, norms)
        if joined != wanted:
            print("note: XLA adds norms up before it sends them")
        wanted = joined
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

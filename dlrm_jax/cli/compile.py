"""Compiles a train step ahead of time: what each device would hold and send, without a table made.

    python -m dlrm_jax compile --preset=mlperf_v2 --mesh=16x8

Emulates the mesh's devices, so that the step of a large machine can be looked at on a small one.
Prints the bytes of the compiled program's arguments and temporaries, and each kind of collective
as the plan has it and as XLA has compiled it. Ends with an error where the two differ.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Sequence

import jax

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.program import FLAGS, define_run_flags, run, start, with_flags
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.presets import preset
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.compiled import (
    compile_step,
    compiled_collectives,
    planned_collectives,
)

define_run_flags(default_preset="mlperf_v2")


def main(argv: Sequence[str]) -> None:
    """Descriptions, compilation, what came of it."""
    del argv
    config = with_flags(preset(FLAGS.preset))
    if config.kernels == "auto":
        # The step of another machine doesn't depend on what has been built on this one.
        config = dataclasses.replace(config, kernels="jax")
    mesh = start(FLAGS.mesh, emulate=True)
    check_batch_size(mesh, "batch_size", config.batch_size)
    print(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    learner = make_learner(config, mesh)
    begun = time.perf_counter()
    compiled = compile_step(learner, config.batch_size, config.dense_features)
    print(f"compiled in {time.perf_counter() - begun:.1f} s")

    memory = compiled.memory_analysis()
    assert memory is not None
    state = learner.state_specs().embedding
    print("\nGiB on each device")
    for name, nbytes in (
        ("weights of tables", _bytes_on_one_device(state.tables)),
        ("state of their optimizers", _bytes_on_one_device(state.slots)),
        ("all arguments of the program", memory.argument_size_in_bytes),
        ("of these, updated in place", memory.alias_size_in_bytes),
        ("temporaries", memory.temp_size_in_bytes),
    ):
        print(f"  {name:<30} {nbytes / 2**30:>9.4f}")

    planned = planned_collectives(learner, config.batch_size)
    wide = max((len(each.purpose) for each in planned), default=2)
    print(f"\n{'collective':<11} {'axes':<11} {'of':<{wide}} {'MiB':>9} {'needed':>9} {'ratio':>6}")
    for each in planned:
        ratio = f"{each.nbytes / each.needed:>6.3f}" if each.needed else ""
        print(
            f"{each.kind:<11} {','.join(each.axes):<11} {each.purpose:<{wide}} "
            f"{each.nbytes / 2**20:>9.3f} {each.needed / 2**20:>9.3f} {ratio}"
        )
    wanted, found = Counter(), Counter()
    for each in planned:
        wanted[each.kind] += each.nbytes
    for kind, nbytes in compiled_collectives(compiled):
        found[kind] += nbytes
    print(f"\n{'bytes on each device':<22} {'planned':>14} {'compiled':>14}")
    kinds = sorted(wanted | found)
    for kind in kinds:
        print(f"{kind:<22} {wanted[kind]:>14,} {found[kind]:>14,}")
    # Layers with batch statistics have collectives of their own.
    uncounted = {"all-reduce"} if learner.has_model_state else set()
    differing = [
        f"{found[kind]:,} bytes of {kind} instead of {wanted[kind]:,}"
        for kind in kinds
        if found[kind] != wanted[kind] and kind not in uncounted
    ]
    if differing:
        raise UserError(
            f"expected the compiled step to have the collectives of the plan, it has "
            f"{' and '.join(differing)}; don't rely on the plan's estimates for this config, and "
            f"report it with the command"
        )


def _bytes_on_one_device(arrays: object) -> int:
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(arrays)
    )


if __name__ == "__main__":
    run(main)

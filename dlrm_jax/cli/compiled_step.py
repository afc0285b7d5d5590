"""A train step compiled for the devices of --target, and what is read of the program."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from dlrm_jax.backend import backend_of
from dlrm_jax.cli.flags import FLAGS, refuse_unless
from dlrm_jax.cli.output_files import check_new
from dlrm_jax.cli.program_report import program_text
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.embedding.owner_exchange import LATER_ROUNDS
from dlrm_jax.embedding.planning.devices import DEVICES, Device
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating, write_json
from dlrm_jax.mesh import parse_mesh
from dlrm_jax.programs.report import report
from dlrm_jax.signals import check
from dlrm_jax.targets import parse_target, target_mesh
from dlrm_jax.text_table import text_table
from dlrm_jax.training import dense_split
from dlrm_jax.training.learner import Learner

_SHOWN_IF_THERE = {
    "code": "code",
    "host_arguments": "arguments in the host's memory",
    "host_temporaries": "temporaries in the host's memory",
}


def define_target(otherwise: str) -> None:
    """``--target`` and ``--json``; the sentence of the former ends with what happens without it."""
    flags.DEFINE_string(
        "target", None,
        f"Device that the step is compiled for{otherwise}, alone or with the number of devices; "
        f"such as h100:8.",
    )  # fmt: skip
    flags.DEFINE_string("json", None, "File to make for all of it, as JSON; such as step.json.")


def of_any_machine(config: Config, mesh: Mesh) -> Config:
    """The config of a step that doesn't depend on what has been built on this machine."""
    if config.kernels == "auto" and backend_of(mesh).native_kernels:
        return dataclasses.replace(config, kernels="jax")
    return config


def check_target() -> None:
    """Checks the flags of a program that trains unless there is a target.

    Raises:
        UserError: one has no effect, or is wrong.
    """
    refuse_unless(FLAGS.target, "--target", "json")
    if FLAGS.target and FLAGS.emulate:
        raise UserError(
            f"--emulate: expected none with --target={FLAGS.target}, whose devices needn't be "
            f"there; leave it out"
        )


def mesh_to_compile_for() -> Mesh:
    """The mesh of the target, or of emulated devices.

    Raises:
        UserError: see `target_mesh`; or the file for JSON is there.
    """
    check_new("json")
    target = parse_target(FLAGS.target) if FLAGS.target else None
    mesh = start(FLAGS.mesh, emulate=True)
    if target:
        mesh = target_mesh(target, parse_mesh(FLAGS.mesh))
    return mesh


def compile_step(
    learner: Learner, lowered: jax.stages.Lowered, ids: int
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """A compiled step, and what is read of it, as an object of JSON.

    Args:
        learner: learner of the step.
        lowered: step before it is compiled.
        ids: number of ids of a batch, over all devices.

    Raises:
        UserError: it doesn't fit into the memory of the target, as compilers for TPUs find.
    """
    begun = time.perf_counter()
    compiled = _compiled(lowered)
    print(f"compiled in {time.perf_counter() - begun:.1f} s")
    device, most = learner.mesh.devices.flat[0], ids // learner.axes.shards
    large = [slab.name for slab in learner.collection.layout.slabs if slab.rows > most]
    found = {
        "target": FLAGS.target,
        "mesh": FLAGS.mesh,
        "device": device.device_kind,
        "jax": jax.__version__,
        "state": _of_state(learner),
        **report(lowered, compiled, device.platform, large, LATER_ROUNDS),
    }
    return compiled, found


def report_step(learner: Learner, step: Any, batch: Any, ids: int) -> None:
    """Compiles a step and prints what is read of it; nothing is trained.

    Args:
        learner: learner of the step.
        step: jitted step, of a state and a batch.
        batch: a batch of the run, whose arrays have the sizes of all.
        ids: number of ids of a batch, over all devices.

    Raises:
        UserError: see `compile_step`.
    """
    sharding = learner.batch_sharding(0)
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)
    _, found = compile_step(learner, step.lower(learner.state_specs(), specs), ids)
    print(f"\n{memory_text(found)}\n\n{program_text(found)}")
    write_found(found)


def compiled_for() -> Device:
    """The device of the target as the planner sees it, or that of emulated ones."""
    return DEVICES[parse_target(FLAGS.target).device if FLAGS.target else "cpu"]


def memory_text(found: Mapping[str, Any], estimated: float | None = None) -> str:
    """The table of a step's memory on one device, and a note if there is too little.

    Args:
        found: object of `compile_step`.
        estimated: bytes of temporaries that a plan expects; None without one.
    """
    memory = found["memory"]
    sizes = {
        **found["state"],
        "all arguments of the program": memory["arguments"],
        "of these, updated in place": memory["updated_in_place"],
        "temporaries": memory["temporaries"],
    }
    if estimated is not None:
        without = " without activations" if compiled_for().emulated else ""
        sizes[f"temporaries, estimated{without}"] = estimated
    sizes |= {name: memory[kind] for kind, name in _SHOWN_IF_THERE.items() if memory[kind]}
    rows = [(name, f"{nbytes / 2**30:.4f}") for name, nbytes in sizes.items()]
    text = text_table(("on each device", "GiB"), rows)
    device = compiled_for()
    needed = memory["arguments"] + memory["temporaries"] + memory["code"]
    if not device.emulated and needed > device.memory:
        text += (
            f"\nnote: the step needs {needed / 2**30:.3g} GiB, more than the "
            f"{device.memory / 2**30:.3g} GiB of a device; choose a smaller --batch_size, or more "
            f"devices"
        )
    return text


def write_found(found: Mapping[str, Any]) -> None:
    """Writes what is read of a step to the file of --json, if there is one."""
    if FLAGS.json:
        with creating(Path(FLAGS.json)) as path:
            write_json(path, found)


def _compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        compiled = lowered.compile()
        check()  # a compiler doesn't stop for a signal
        return compiled
    except jax.errors.JaxRuntimeError as error:
        check()  # Ctrl-C ends the processes that XLA's compiler starts, such as ptxas, too
        if not FLAGS.target or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).partition("\n")[0].partition(" :: ")[0]
        raise UserError(
            f"--target={FLAGS.target}: expected a step that fits into a device's memory, got "
            f"{words}; choose more model shards in --mesh, or a smaller --batch_size"
        ) from error


def _of_state(learner: Learner) -> dict[str, int]:
    """The bytes of each part of the state on one device."""
    state = learner.state_specs()
    parts = {
        "tables": state.embedding.tables,
        "state of their optimizers": state.embedding.slots,
        "dense model": state.params,
        "state of its optimizer": state.optimizer,
    }
    sizes = {name: _on_one_device(jax.tree.leaves(part)) for name, part in parts.items()}
    if learner.shard_dense_optimizer:  # what each device updates whole, and shouldn't
        whole = [
            x
            for x in jax.tree.leaves(state.params)
            if not dense_split.is_split(learner.axes, x.shape)
        ]
        sizes["of its parameters, updated on each device"] = _on_one_device(whole)
    return sizes


def _on_one_device(arrays: Iterable[Any]) -> int:
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in arrays)

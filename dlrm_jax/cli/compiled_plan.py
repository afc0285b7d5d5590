"""A plan whose train step is compiled, with memory for all that the compiled step needs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from dlrm_jax.cli.compiled_step import of_any_machine
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import MeshPlan
from dlrm_jax.embedding.planning.planner import MemoryExceededError
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import parse_mesh
from dlrm_jax.programs.hlo import Program, program_of
from dlrm_jax.programs.large_arrays import arguments
from dlrm_jax.programs.report import memory
from dlrm_jax.targets import TARGETS, lacks, target_mesh
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.compiled import compile_step

# Plans whose steps are compiled before the planner gives up.
_ATTEMPTS = 3
# Share of the memory that tables leave to a step for which a compiler found too little.
_LESS = 0.8
_OF_TABLES = "state.embedding."


class CompiledPlan(NamedTuple):
    """Plans, and the step of the first of them.

    Attributes:
        plans: plan for one mesh, or for each, the fastest first.
        program: compiled step of the first.
        tables: bytes of tables and their state on a device.
        arguments: bytes of all arguments of the step.
        temporaries: bytes of what it makes, its code included.
        seconds: seconds of compiling.
    """

    plans: Sequence[MeshPlan]
    program: Program
    tables: int
    arguments: int
    temporaries: int
    seconds: float

    @property
    def needed(self) -> int:
        """Bytes of memory that a device needs."""
        return self.arguments + self.temporaries


def check_compiled(kind: Device) -> None:
    """Checks that steps can be compiled for a device.

    Raises:
        UserError: there is no compiler for it, or it isn't installed.
    """
    if kind.emulated:
        return
    if kind.name not in TARGETS:
        raise UserError(
            f"--compiled: expected one of {', '.join(TARGETS)} or cpu as --device, for which "
            f"there are compilers, got {kind.name}"
        )
    if missing := lacks(kind.name):
        raise UserError(f"--compiled: {missing}")


def plan_and_compile(
    config: Config,
    kind: Device,
    limits: Limits,
    available: float,
    plans_within: Callable[[Limits], Sequence[MeshPlan]],
) -> CompiledPlan:
    """Plans, compiles the step, and plans with less memory for tables until the step fits.

    Args:
        config: config of the step.
        kind: model of every device.
        limits: limits of the first plan.
        available: bytes of memory of a device.
        plans_within: function that plans within limits.

    Raises:
        MemoryExceededError: no plan leaves enough memory for the rest of its step.
    """
    needed = 0.0
    for _ in range(_ATTEMPTS):
        plans = plans_within(limits)
        of_tables = plans[0].balance.device_bytes
        found = _compiled(config, kind, plans)
        if found and found.needed <= available:
            return found
        needed = found.needed if found else available
        room = of_tables - (found.needed - available) if found else _LESS * of_tables
        if config.plan or room < 1:
            break
        print(
            f"the step of the plan for {plans[0].mesh} needs "
            f"{f'{needed / 2**30:.3g} GiB' if found else 'more memory than there is'}; planning "
            f"with {room / 2**30:.3g} GiB for tables"
        )
        limits = dataclasses.replace(limits, memory=room)
    raise MemoryExceededError(
        f"--compiled: expected a step that fits into the {available / 2**30:.3g} GiB of a device, "
        f"got one that needs {needed / 2**30:.3g} GiB; use more devices, a smaller batch, or "
        f"another plan",
        needed,
    )


def _compiled(config: Config, kind: Device, plans: Sequence[MeshPlan]) -> CompiledPlan | None:
    """The compiled step of the first plan; None if its compiler found too little memory."""
    plan = plans[0]
    mesh = start(plan.mesh, emulate=True)
    if not kind.emulated:
        mesh = target_mesh(kind.name, parse_mesh(plan.mesh))
    learner = make_learner(of_any_machine(config, mesh), mesh, plan=plan.plan)
    begun = time.perf_counter()
    try:
        compiled = compile_step(
            learner, config.batch_size, config.dense_features, pipelined=config.pipelined
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    seconds, needed = time.perf_counter() - begun, memory(compiled)
    program = program_of(compiled)
    return CompiledPlan(
        plans,
        program,
        sum(x.array.padded_nbytes for x in arguments(program) if x.name.startswith(_OF_TABLES)),
        needed["arguments"],
        needed["temporaries"] + needed["code"],
        seconds,
    )


def compiled_table(found: CompiledPlan, available: float) -> str:
    """The memory of a device as planned and as compiled.

    Args:
        found: compiled plan.
        available: bytes of memory of a device.
    """
    plan = found.plans[0]
    rows = [
        ("tables and their state", plan.balance.device_bytes, found.tables),
        ("dense model, its state, and a batch", None, found.arguments - found.tables),
        ("temporaries and code", plan.temporaries, found.temporaries),
        ("in all", None, found.needed),
        ("of", None, available),
    ]
    cells = [
        (name, "" if planned is None else f"{planned / 2**30:.4f}", f"{compiled / 2**30:.4f}")
        for name, planned, compiled in rows
    ]
    heading = ("GiB on each device", "planned", "compiled")
    return f"{text_table(heading, cells)}\ncompiled in {found.seconds:.1f} s"

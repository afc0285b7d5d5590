"""The start of a program: its processes, its mesh, and the cache of compiled programs."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

import jax
from absl import flags

from dlrm_jax.cli.compilation_cache import keep_compiled
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.launch import end_with_launcher
from dlrm_jax.coordinator import CLUSTER, join
from dlrm_jax.embedding import Plan
from dlrm_jax.files import cache_directory
from dlrm_jax.mesh import check_accelerators, emulate_devices, make_mesh, parse_mesh
from dlrm_jax.processes import check_same, is_process_0


def define_process_flags() -> None:
    """``--processes``, and the place of this one if the program doesn't start them itself."""
    flags.DEFINE_integer(
        "processes",
        1,
        "Processes that the program runs in; without --coordinator, it starts them on this "
        "machine; such as 2.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        f"Address of process 0 if this is one of several processes, or {CLUSTER} under Slurm, "
        "Kubernetes or Open MPI; such as 10.0.0.1:5000.",
    )
    flags.DEFINE_integer(
        "process", None, f"Number of this process, from 0; not with {CLUSTER}; such as 1."
    )


def start(mesh: str, processes: int = 1, emulate: bool = False) -> jax.sharding.Mesh:
    """The mesh, and a compilation cache. Without accelerators, its devices are emulated.

    It is spread over so many processes; the flags of `define_process_flags` say which one of
    several this is. ``emulate`` emulates its devices in any case, as ``--emulate`` does.

    Raises:
        UserError: there are accelerators, and fewer than the mesh needs.
    """
    shape = parse_mesh(mesh)
    if emulate or ("emulate" in FLAGS and FLAGS.emulate):
        jax.config.update("jax_platforms", "cpu")
    emulate_devices(shape[0] * shape[1], processes)
    if processes > 1:
        end_with_launcher()
        join(FLAGS.coordinator, processes, FLAGS.process)
        _leave_output_to_first()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        keep_compiled(cache_directory() / "xla")
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    check_accelerators(shape)
    return make_mesh(shape)


def check_same_plan(plan: Plan) -> None:
    """Checks that all processes have one plan: it may come from a file, another on each machine.

    Raises:
        UserError: a table's pieces differ from those of process 0.
    """
    pieces: dict[str, Any] = {}
    for piece in plan.pieces:
        pieces.setdefault(f"the plan of {piece.table}", []).append(dataclasses.asdict(piece))
    check_same(pieces)


def _leave_output_to_first() -> None:
    """Sends only the output of process 0 to standard output."""
    sys.stdout.flush()
    shown, hidden = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(hidden, 1)  # in every process, gloo writes a line for each connection it makes
    sys.stdout = os.fdopen(shown if is_process_0() else hidden, "w")

"""Measures the time of a training step by class of operator, beside the machine's limits.

    python -m experiments.characterize --preset=kaggle --batch_size=2048 --workdir=runs/characterize

The step is that of `dlrm_jax train`, fed by its loader with generated data. It is timed and
profiled in turn. Each instant of the profile is divided equally among the classes of the operators
that run at that instant, so that the classes sum to the profiled step. Classes are the
`jax.named_scope` in which the model, the tables and the optimizer are traced, collectives by kind,
``data`` for loading and placing batches, and ``other`` for operators in no scope, such as adding
the gradients of chunks. A collective counts from the arrival of its last device. Thunks count on
the thread that starts them.

Operations and bytes are counted in the compiled program, rows of tables in the batches. It prints
a table and, with ``--workdir``, writes ``characterization.json``, ``characterization.html`` and,
for each device, ``chakra/step.DEVICE.et``: the step as an execution trace for system simulators
(see `experiments.characterize.chakra`).

``--sweep`` measures steps that differ in one property, each in its own process:
``--sweep=batch_size=512:2048:8192,mesh=1x1:2x4``; without values, it uses values around the
config's. ``rows`` are factors of the config's; ``width`` is that of the tables' rows and of the
bottom MLP's output.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.output_files import check_pictures, check_writable
from dlrm_jax.cli.pictures import save
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_json
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.presets import preset
from dlrm_jax.text_table import text_table
from experiments.characterize import chakra, report, sweep
from experiments.characterize.drawing import draw_step
from experiments.characterize.measure import measure
from experiments.characterize.profile import durations

# Of the processes of a sweep; what a mesh of several devices adds isn't for those of one.
_ENVIRONMENT = dict(os.environ)

define_run_flags("kaggle", dict.fromkeys(OF_WHOLE_RUNS, "steps on generated batches are measured"))
flags.DEFINE_string(
    "workdir", None, "Directory for the result, its page and traces; such as runs/characterize."
)
flags.DEFINE_list(
    "sweep",
    [],
    f"What is varied, of {', '.join(sweep.NAMES)}, each with its values or without; such as "
    "batch_size=512:2048,mesh.",
)
flags.DEFINE_string("picture", None, "File to draw the step in: .png or .svg; such as step.png.")
flags.DEFINE_integer("rounds", 5, "Rounds of timing and profiling; such as 10.", 1)
flags.DEFINE_integer("steps_per_round", 20, "Steps timed or profiled together; such as 50.", 1)

# By how much the profiler may slow the step down before its shares mean little.
_TOLERANCE = 0.1


def main() -> None:
    """Measures one step, then the steps of the sweeps."""
    mesh = start(FLAGS.mesh)
    config = with_flags(preset(FLAGS.preset))
    sweeps = sweep.parse(FLAGS.sweep, config)
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else None
    if sweeps and workdir is None:
        raise UserError("--sweep: expected a --workdir for what each step leaves, got none")
    check_pictures("picture")
    check_writable("picture")
    # A cached program may have been traced with other scopes, which don't change the cache's key.
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    check_batch_size(mesh, "batch_size", config.batch_size)

    description = {
        "preset": FLAGS.preset,
        "mesh": FLAGS.mesh,
        "device": describe_devices(mesh),
        "batch_size": config.batch_size,
        "embedding_dim": config.embedding_dim,
        "bag_lengths": config.bag_lengths,
        "rows": sum(config.table_rows),
        "optimizer": config.optimizer,
    }
    measured = measure(config, mesh, FLAGS.rounds, FLAGS.steps_per_round)
    result = report.as_result(description, measured)
    rows, totals = report.rows(result)
    print(text_table(report.HEADER, [*rows, totals]))
    print(f"\n{report.sentence(result)}")
    if abs(result["profiled_over_step"] - 1) > _TOLERANCE:
        print(
            f"these differ by more than {_TOLERANCE:.0%}: the profiler slows steps of a "
            f"millisecond or two; during longer ones, the machine did something else"
        )
    if FLAGS.picture:
        save(draw_step(result), FLAGS.picture)
    if workdir is None:
        return
    chakra.write(
        measured.program, durations(measured.profile, measured.program), workdir / "chakra", "step"
    )
    found = {}
    own = ("sweep", "picture", "workdir")
    given = [FLAGS[x].serialize() for x in FLAGS if FLAGS[x].present and x not in own]
    for what, values in sweeps.items():
        found[what] = sweep.run(what, values, config, given, _ENVIRONMENT, workdir)
        print(f"\n{text_table(*report.sweep_table(what, found[what]))}", flush=True)
    write_json(workdir / "characterization.json", {**result, "sweeps": found})
    report.write_page(workdir / "characterization.html", result, found)
    print(f"\npage: {workdir / 'characterization.html'}")


if __name__ == "__main__":
    run(main)

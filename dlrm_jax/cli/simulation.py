"""The flags and the report of a train step on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from absl import flags

from dlrm_jax.cli.flags import FLAGS, refuse_unless
from dlrm_jax.config import Config
from dlrm_jax.embedding import Plan
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.errors import UserError
from dlrm_jax.programs.hlo import Program
from dlrm_jax.simulation.counts import PART_OF, STEP_PARTS, Counts, StepPart, count
from dlrm_jax.simulation.schedule import Slot, critical_path, seconds_of
from dlrm_jax.simulation.step import Options, formula_kernels, simulate
from dlrm_jax.text_table import text_table
from dlrm_jax.training.tables import Descriptions

_PARTS: Mapping[StepPart, str] = {
    "lookup": "lookups", "forward": "model, forward", "backward": "model, backward",
    "update": "update of tables", "dense": "update of the model",
}  # fmt: skip

# Fields of the config that a simulated step depends on, and a plan doesn't.
_OF_MODEL = (
    "model_options", "dense_features", "top_mlp", "self_interaction", "numeric_embedding",
    "compute_dtype", "product_precision", "comm_dtype", "dense_optimizer",
    "shard_dense_optimizer", "dense_comm_dtype", "pipelined",
)  # fmt: skip


def define_simulation() -> None:
    """``--simulate`` and how a simulated step runs."""
    flags.DEFINE_bool("simulate", False, "Also prints the time of a whole train step on paper.")
    flags.DEFINE_bool(
        "in_network", False, "Simulates a network whose switches add up gradients, as SHARP does."
    )


def check_simulation(config: Config) -> None:
    """Checks the flags of a simulated step.

    Raises:
        UserError: one has no effect, or the step can't be simulated.
    """
    refuse_unless(FLAGS.simulate, "--simulate", *_OF_MODEL, "in_network")
    if FLAGS.in_network and (config.shard_dense_optimizer or config.dense_comm_dtype != "float32"):
        raise UserError(
            f"--in_network: expected dense gradients in an all-reduce, which switches can add up, "
            f"got shard_dense_optimizer={config.shard_dense_optimizer} and "
            f"dense_comm_dtype={config.dense_comm_dtype}, whose devices each add up a part; leave "
            f"out --in_network, or both of these"
        )
    if FLAGS.simulate and config.accumulation_steps > 1:
        raise UserError(
            f"--simulate: expected batches without micro-batches, got accumulation_steps="
            f"{config.accumulation_steps}; simulate one with --accumulation_steps=1 and its batch "
            f"size"
        )


def report(
    config: Config,
    described: Descriptions,
    plan: Plan,
    groups: int,
    device: Device,
    program: Program | None = None,
) -> str:
    """The operations of a train step with their times, and what the step waits for.

    Args:
        config: config of the model and the batch.
        described: its tables and lookups.
        plan: plan of these tables.
        groups: number of data-parallel groups.
        device: model of every device.
        program: compiled step, whose kernels count instead of formulas; None without one.
    """
    options = Options(pipelined=config.pipelined, in_network=FLAGS.in_network)
    step = config, described, plan, groups, device, options
    slots, compared = simulate(*step), ""
    if program:
        formulas, counts = slots, count(program)
        slots = simulate(*step, counts)
        kernels = formula_kernels(config, described, plan, groups)
        compared = f"{comparison_table(formulas, slots, kernels, counts)}\n\n"
    seconds = seconds_of(slots)
    throughput = float(f"{config.batch_size / seconds:.4g}")
    return (
        f"{compared}{operations_table(slots, device)}\n"
        f"a step of {config.batch_size:,} samples: {1e3 * seconds:.3f} ms, "
        f"{throughput:,.0f} samples a second"
    )


def comparison_table(
    formulas: Sequence[Slot],
    program: Sequence[Slot],
    kernels: Mapping[StepPart, int],
    counts: Counts,
) -> str:
    """What formulas expect of a step, beside the program: kernels, their time, and collectives.

    Args:
        formulas: schedule by formulas.
        program: schedule with the program's kernels.
        kernels: kernels of each part by formulas.
        counts: work of the program.
    """

    def computing(slots: Sequence[Slot], part: StepPart) -> float:
        return sum(
            slot.operation.seconds
            for slot in slots
            if PART_OF[slot.operation.name.partition(":")[0]] == part
            and slot.operation.resource not in ("links", "network")
        )

    rows = [
        (_PARTS[part], f"{kernels[part]:,}", f"{counts.kernels[part]:,}",
         *(f"{1e3 * computing(slots, part):.3f}" for slots in (formulas, program)),
         f"{counts.collectives[part]:,}", f"{counts.beside[part]:,}")
        for part in STEP_PARTS
    ]  # fmt: skip
    both = (f"{1e3 * seconds_of(slots):.3f}" for slots in (formulas, program))
    rows.append(("a step", f"{sum(kernels.values()):,}", f"{sum(counts.kernels.values()):,}",
                 *both, f"{sum(counts.collectives.values()):,}",
                 f"{sum(counts.beside.values()):,}"))  # fmt: skip
    header = ("formula, program", "kernels", "program", "ms", "program",
              "collectives", "beside kernels")  # fmt: skip
    return text_table(header, rows)


def operations_table(slots: Sequence[Slot], device: Device) -> str:
    """The operations in the order of their starts; the step waits for those marked *."""
    critical = {slot.operation.name for slot in critical_path(slots)}
    rows = [
        [slot.operation.name + " *" * (slot.operation.name in critical),
         *(f"{1e3 * x:.3f}" for x in (slot.start, slot.end, slot.operation.seconds))]
        for slot in sorted(slots, key=lambda slot: slot.start)
    ]  # fmt: skip
    return text_table([f"simulated for {device.name}", "from", "to", "ms"], rows)

"""Compares simulated steps with published runs, and fits what GPUs reach of their data sheets.

    python -m experiments.benchmarks.published_runs
    python -m experiments.benchmarks.published_runs --fit

The runs are those of MLPerf Training's DLRM-DCNv2 and of NVIDIA's DeepLearningExamples. They ran
other programs: HugeCTR's and PyTorch's, with hand-written kernels for tables. What is simulated is
`FUSED` kernels with the placement of this package's planner on one host; on several hosts, all
tables are fully sharded. Ids of the next batch are exchanged during a step, numbers between devices
have 16 bits where the run had them, and the network adds up gradients, as the runs' did.

``--fit`` finds the two constants that nothing else is known of, the share of the speed of matrix
products and the seconds of a kernel's start, on four of the runs. The others check them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from absl import flags
from scipy.optimize import minimize

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.config import Config
from dlrm_jax.embedding import Plan, automatic_plan
from dlrm_jax.embedding.planning.data_sheets import GPU, SHEETS, Reached
from dlrm_jax.embedding.planning.devices import DEVICES, Device
from dlrm_jax.embedding.planning.program import FUSED
from dlrm_jax.presets import preset
from dlrm_jax.simulation.schedule import seconds_of
from dlrm_jax.simulation.step import Options, simulate
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import workload
from dlrm_jax.training.tables import Descriptions, describe

flags.DEFINE_bool("fit", False, "Fits the constants of GPUs anew, which takes a minute.")


class Run(NamedTuple):
    """A published run.

    Attributes:
        source: repository and directory of its results.
        device: name of the device.
        hosts: number of hosts, or of groups.
        per_host: number of devices of a host.
        batch_size: samples of a batch, over all devices.
        step_ms: milliseconds of a train step, without evaluations.
        model: preset of the model and its tables.
        in_16_bits: whether products and what devices exchange had 16 bits.
        is_fitted: whether constants are fitted on it.
    """

    source: str
    device: str
    hosts: int
    per_host: int
    batch_size: int
    step_ms: float
    model: str = "mlperf_v2"
    in_16_bits: bool = True
    is_fitted: bool = False


# MLPerf: result_*.txt of each directory; the median of the times from the end of an evaluation to
# the start of the next one, over the steps between them. The published throughput includes
# evaluations. Where a run was submitted several times it is the latest; all H100 and H200 of one
# host or of NVIDIA are of round 4.0, so that the program is the same.
_EXAMPLES = "DeepLearningExamples DLRM, PyTorch"
RUNS = (
    Run("MLPerf 3.0 Dell", "a100", 1, 8, 55_296, 7.145, is_fitted=True),
    Run("MLPerf 4.0 Juniper", "a100", 8, 8, 135_168, 5.050),
    Run("MLPerf 4.0 Dell", "h100", 1, 4, 28_000, 3.701),
    Run("MLPerf 4.0 NVIDIA", "h100", 1, 8, 55_296, 3.528, is_fitted=True),
    Run("MLPerf 4.0 NVIDIA", "h100", 8, 8, 135_168, 2.408),
    Run("MLPerf 4.0 NVIDIA", "h100", 16, 8, 135_168, 1.816, is_fitted=True),
    Run("MLPerf 4.0 NVIDIA", "h200", 1, 8, 55_296, 3.243),
    Run("MLPerf 5.0 HPE", "h200", 1, 8, 65_536, 3.710),
    Run("MLPerf 5.0 HPE", "h200", 2, 8, 65_536, 3.346),
    Run("MLPerf 5.0 HPE", "h200", 4, 8, 131_200, 3.551),
    Run("MLPerf 5.0 NVIDIA", "b200", 1, 8, 55_296, 2.154, is_fitted=True),
    Run("MLPerf 5.0 NVIDIA", "gb200", 2, 4, 55_296, 2.074),
    Run("MLPerf 5.0 NVIDIA", "gb200", 16, 4, 135_168, 1.434),
    # Batches of 65,536 over the published examples a second: 2.88, 4.02, 11.4 and 16.5 million.
    Run(_EXAMPLES, "a100", 1, 1, 65_536, 22.756, "terabyte", False),
    Run(_EXAMPLES, "a100", 1, 1, 65_536, 16.302, "terabyte"),
    Run(_EXAMPLES, "a100", 1, 8, 65_536, 5.749, "mlperf_v1", False),
    Run(_EXAMPLES, "a100", 1, 8, 65_536, 3.972, "mlperf_v1"),
)


def config_of(published: Run) -> Config:
    """The config that is nearest to a run."""
    sent = "bfloat16" if published.in_16_bits else "float32"
    config = dataclasses.replace(
        preset(published.model),
        batch_size=published.batch_size,
        comm_dtype=sent,
        product_precision="tf32",  # of those of 32 bits
    )
    if published.model == "mlperf_v2":  # HugeCTR's Adagrad has a state for each number
        return dataclasses.replace(config, optimizer="adagrad")
    # The model is that of mlperf_v1. The tables of a single GPU had 15 GB; these have 25.
    wide = preset("mlperf_v1")
    return dataclasses.replace(
        config,
        embedding_dim=wide.embedding_dim,
        bottom_mlp=wide.bottom_mlp,
        top_mlp=wide.top_mlp,
    )


@functools.cache
def planned(published: Run) -> tuple[Config, Descriptions, Plan]:
    """The config, tables and plan of a run."""
    config = config_of(published)
    described = describe(config)
    names = [table.name for table in described.tables] if published.hosts > 1 else []
    plan = automatic_plan(
        described.tables,
        published.per_host,
        dict.fromkeys(names, "fully_sharded"),
        optimizer=described.optimizer,
        workload=workload(config, described, published.hosts),
        device=DEVICES[published.device],
    )
    return config, described, plan


def simulated_ms(published: Run, share: Reached) -> float:
    """The milliseconds of a run's step on paper.

    Args:
        published: run.
        share: share of the data sheet of its devices that programs reach.
    """
    config, described, plan = planned(published)
    options = Options(FUSED, True, True, published.in_16_bits)
    device = Device.of(published.device, SHEETS[published.device], share)
    return 1e3 * seconds_of(simulate(config, described, plan, published.hosts, device, options))


def fitted(start: Reached, simulated: Callable[[Run, Reached], float] = simulated_ms) -> Reached:
    """The shares whose simulated steps are nearest to the runs that constants are fitted on.

    Args:
        start: shares to begin with.
        simulated: function of a run and shares that gives its milliseconds.
    """

    def share(constants: tuple[float, float]) -> Reached:
        return start._replace(products=constants[0], launch=1e-6 * constants[1])

    def error(constants: tuple[float, float]) -> float:
        if min(constants) <= 0:
            return math.inf
        ratios = [simulated(x, share(constants)) / x.step_ms for x in RUNS if x.is_fitted]
        return sum(math.log(ratio) ** 2 for ratio in ratios)

    first = [start.products, 1e6 * start.launch]
    options = {"xatol": 0.005, "fatol": 1e-6}
    return share(minimize(error, first, method="Nelder-Mead", options=options).x)


def main() -> None:
    """Fits constants if asked to, and prints published and simulated steps."""
    share = GPU
    if FLAGS.fit:
        share = fitted(GPU)
        print(f"products: {share.products:.3f}, launch: {1e6 * share.launch:.2f} us\n")
    rows = []
    for each in RUNS:
        found = simulated_ms(each, share)
        devices = f"{each.hosts * each.per_host} x {each.device}"
        used = "fitted" if each.is_fitted else "checked"
        rows.append([
            each.source, devices, f"{each.batch_size:,}", "16" if each.in_16_bits else "32", used,
            f"{each.step_ms:.3f}", f"{found:.3f}", f"{found / each.step_ms - 1:+.0%}",
        ])  # fmt: skip
    header = ["run", "devices", "batch", "bits", "used", "ms", "simulated", "error"]
    print(text_table(header, rows, left=(0, 1, 4)))


if __name__ == "__main__":
    run(main)

"""Times a layer of HSTU in turn with the reference's formulas in PyTorch, on a CPU.

    python -m experiments.benchmarks.hstu_layer --lengths=200,2000

A layer has 4 heads of 64, or 1 of 50, and a batch of about 16,384 tokens in float32. Sequences have
50 to 100 % of the longest length, or all the longest one. In training, gradients of all parameters
and vectors are computed. PyTorch has two formulations (see `peers.workers.torch_hstu`), each of
them run eagerly, eagerly with linear maps through oneDNN, and by `torch.compile`; each runs in its
own process and environment. First its results are compared with ours, array by array.

The ratio is PyTorch's time over ours, the median of the rounds with its quartiles; ``least`` is the
ratio to the fastest of PyTorch's. TFLOP/s are those of the needed products (`Case.needed_flops`),
beside the most that any product reaches here (see `experiments.benchmarks.roofline`). "elsewhere"
is the share of the processors that other programs used meanwhile. With ``--one_core``, all run on
one core, and times are those of the processor, which other programs disturb less.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dlrm_jax import processor
from dlrm_jax.cli.flags import FLAGS, define_numbers
from dlrm_jax.cli.run import run
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory
from dlrm_jax.native import library
from experiments.benchmarks.hstu_problem import Case, distances, save
from experiments.benchmarks.peers import environment
from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.peers.load import Load, wait_for_quiet
from experiments.benchmarks.roofline import SIDE, product_flops
from experiments.benchmarks.timing import calls_per_second, ratio_quartiles

_SHAPES = {"4x64": (4, 64), "1x50": (1, 50)}
_FORMS = [
    f"{form}_{how}" for form in ("research", "ops") for how in ("eager", "onednn", "compiled")
]
_WORKERS = "experiments.benchmarks.peers.workers"

define_numbers("lengths", (200, 2000), "Longest lengths of a sequence; such as 200,2000.", low=1)
_CHOICES = {
    "shapes": list(_SHAPES),
    "spreads": ["varied", "equal"],
    "biases": ["distance", "time"],
    "modes": ["train", "infer"],
    "peers": _FORMS,
}
flags.DEFINE_list("shapes", list(_SHAPES), f"Heads by their width, of {', '.join(_SHAPES)}.")
flags.DEFINE_list("spreads", ["varied", "equal"], "Lengths: varied or equal; such as varied.")
flags.DEFINE_list("biases", ["distance", "time"], "Biases: by distance, or by time, too.")
flags.DEFINE_list("modes", ["train", "infer"], "Modes: train or infer; such as infer.")
flags.DEFINE_list("peers", _FORMS, f"Forms in PyTorch, of {', '.join(_FORMS)}.")
flags.DEFINE_integer("tokens", 16384, "Tokens of a batch; such as 4096.", 1)
flags.DEFINE_integer("rounds", 7, "Rounds in which both are timed; such as 15.", 1)
flags.DEFINE_float("seconds", 1.0, "Seconds of each timing, or one step; such as 3.", 0.01)
flags.DEFINE_bool("one_core", False, "Runs all on one core, and counts processor time.")
flags.DEFINE_string("environment", None, "Directory for PyTorch; without it, one in the cache.")

_TOLERANCE = 1e-4  # sums of float32 in another order
_PATIENCE_SECONDS = 5.0  # before a round


def check_flags() -> None:
    """Refuses cases that there aren't.

    Raises:
        UserError: a flag names one.
    """
    for name, choices in _CHOICES.items():
        if wrong := [x for x in FLAGS[name].value or () if x not in choices]:
            raise UserError(f"--{name}: expected some of {', '.join(choices)}, got {wrong[0]!r}")
    longest = max(FLAGS.lengths)
    if longest > FLAGS.tokens:
        raise UserError(
            f"--tokens: expected at least the longest of --lengths, {longest:,}, got "
            f"{FLAGS.tokens:,}"
        )


def cases() -> Iterator[tuple[str, Case]]:
    """The name and the settings of each case."""
    settings = FLAGS.shapes, FLAGS.lengths, FLAGS.spreads, FLAGS.biases, FLAGS.modes
    for shape, length, spread, bias, mode in itertools.product(*settings):
        case = Case(
            *_SHAPES[shape],
            length,
            spread == "varied",
            bias == "time",
            mode == "train",
            FLAGS.tokens,
        )
        yield f"| {shape} | {length} | {spread} | {bias} | {mode} ", case


def check(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], name: str) -> float:
    """The largest relative distance of a result.

    Raises:
        UserError: a peer has computed something else.
    """
    found = dict(distances(ours, theirs))
    for array, distance in found.items():
        if not distance <= _TOLERANCE:  # also catches NaN
            raise UserError(
                f"{name} computes something else: {array} is {distance:.2g} away from ours; "
                f"expected at most {_TOLERANCE:g}"
            )
    return max(found.values())


def _results(contestant: Contestant, directory: Path) -> dict[str, np.ndarray]:
    path = directory / f"{contestant.name}.npz"
    contestant.ask("results", output=str(path))
    with np.load(path) as arrays:
        return dict(arrays)


def _steps(contestant: Contestant) -> int:
    """The steps that fill the seconds of a timing."""
    return max(1, round(FLAGS.seconds / _seconds(contestant, 1)[0]))


def _seconds(contestant: Contestant, steps: int) -> tuple[float, float]:
    """Seconds of a step, and those of all on all processors."""
    found = contestant.ask("run", steps=steps)
    busy = found["cpu_seconds"]
    return (busy / steps if FLAGS.one_core else found["seconds"]), busy


def lines(name: str, case: Case, peers: Sequence[Worker], peak: float) -> Iterator[str]:
    """A row of the Markdown table for each peer, and one for the fastest."""
    ratios: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        save(case, directory)
        worker = Worker("ours", Path(sys.executable), f"{_WORKERS}.our_hstu")
        with Contestant(worker) as ours:
            ours.ask("build", problem=temporary)
            results, steps = _results(ours, directory), _steps(ours)
            for peer in peers:
                with Contestant(peer) as theirs:
                    theirs.ask("build", problem=temporary)
                    distance = check(results, _results(theirs, directory), peer.name)
                    own, other, shares, their_steps = [], [], [], _steps(theirs)
                    for _ in range(FLAGS.rounds):
                        if not FLAGS.one_core:
                            wait_for_quiet(_PATIENCE_SECONDS)
                        load = Load()
                        (a, busy), (b, theirs_busy) = (
                            _seconds(ours, steps),
                            _seconds(theirs, their_steps),
                        )
                        shares.append(load.elsewhere(busy + theirs_busy) or 0.0)
                        own.append(a)
                        other.append(b)
                ratios.append(ratio_quartiles(other, own))
                low, middle, high = ratios[-1]
                mine, his = statistics.median(own), statistics.median(other)
                speed = case.needed_flops() / mine
                yield (
                    f"{name}| {peer.name} | {1e3 * mine:.0f} | {1e3 * his:.0f} | {middle:.2f} "
                    f"({low:.2f} to {high:.2f}) | {speed / 1e12:.3f} | {speed / peak:.0%} | "
                    f"{distance:.0e} | {statistics.mean(shares):.0%} |"
                )
    if len(peers) > 1:
        low, middle, high = min(ratios, key=lambda x: x[1])
        yield f"{name}| least | | | {middle:.2f} ({low:.2f} to {high:.2f}) | | | | |"


def _most_flops() -> float:
    """Operations a second of the fastest product."""
    if not FLAGS.one_core:
        return product_flops(library.load(), "float32")
    side = jnp.ones((SIDE, SIDE))
    multiply = jax.jit(jnp.matmul).lower(side, side).compile()
    calls = [lambda: jax.block_until_ready(multiply(side, side))]
    return 2 * SIDE**3 * calls_per_second(calls, 1.0, processor_time=True)


def main() -> None:
    """Goes through the cases, and prints the rows of each."""
    check_flags()
    if FLAGS.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # of all contestants, too
    directory = Path(FLAGS.environment) if FLAGS.environment else cache_directory() / "peers"
    python, awake = environment.ready(directory), {"OMP_WAIT_POLICY": "active"}
    peers = []
    for name in FLAGS.peers:
        form, how = name.split("_")
        own = (f"--form={form}", f"--how={how}")
        peers.append(Worker(name, python, f"{_WORKERS}.torch_hstu", own, awake))
    peak = _most_flops()
    print(
        f"{processor.name()}, {processor.instruction_sets()}; native kernels: "
        f"{'yes' if library.load() else 'no'}; at most {peak / 1e12:.3f} TFLOP/s in a product\n\n"
        "| heads | length | lengths | bias | mode | peer | ours, ms | peer, ms | ratio (quartiles) "
        "| TFLOP/s, ours | of the most | distance | elsewhere |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name, case in cases():
        for line in lines(name, case, peers, peak):
            print(line, flush=True)


if __name__ == "__main__":
    run(main)

"""Times this project's step in turn with PyTorch's, TorchRec's, FBGEMM's and a dense one in JAX.

    python -m experiments.benchmarks.peers --presets=kaggle --batch_sizes=128 --output=peers.json

All run on the CPU, each in its own process, with the same initial weights and batches. The losses
of the first ten steps must agree. That is a weak test of tables under SGD with one id a bag: even
if they are never updated, Kaggle's losses agree to 1e-5. ``--presets=small --max_rows=100
--batch_sizes=64`` catches such a peer; check a new one with it first, in float32: bfloat16's
tolerance is too wide for that.

Then this project and one peer at a time are timed in turn, so that the two timings of a round see
the same machine and no more than two contestants' tables are in memory. A round counts if almost
nothing else ran meanwhile. The program prints a row of a Markdown table for each match. The ratio
is the peer's time over ours, the median of the rounds, with its quartiles, and a star if these are
more than a tenth of the median apart; the peak is resident memory of the steps; "load elsewhere" is
the share of the processors used by other programs; "core to core" is the time of a byte from one
core to another and back (see `benchmarks.cores`). Before the table stand the processor and the
libraries that compute the products of layers.

``--precision=float32,bfloat16`` adds matches whose dense part computes in bfloat16, with
parameters, tables and their optimizers in float32: ours with ``compute_dtype=bfloat16``, PyTorch's
under `torch.autocast`.

Peers get all cores and the allocator settings of this program. Their packages are installed on
first use. ``*_compiled`` run the dense part through `torch.compile` and need a C++ compiler;
``*_onednn`` run linear layers of float32 through oneDNN, which PyTorch uses by itself in bfloat16
alone.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from dlrm_jax import processor
from dlrm_jax.cli.flags import FLAGS, define_numbers
from dlrm_jax.cli.output_files import check_writable
from dlrm_jax.cli.run import run
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory
from dlrm_jax.native import library
from dlrm_jax.presets import PRESETS, preset
from experiments.benchmarks.peers import lineup, products, report
from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.peers.drawing import cut, draw_examples, draw_weights, make_problem
from experiments.benchmarks.peers.match import COMPARED_STEPS, TOLERANCES, UNSTEADY, play
from experiments.benchmarks.peers.problem import Mode, Optimizer, Precision, Problem

OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "rowwise_adagrad")
MODES: tuple[Mode, ...] = ("train", "infer")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

flags.DEFINE_list("presets", ["kaggle"], f"Presets of {', '.join(PRESETS)}; such as small,kaggle.")
define_numbers("batch_sizes", (128, 2048), "Examples of a step; such as 64,8192.", low=1)
flags.DEFINE_list(
    "optimizers", list(OPTIMIZERS), f"Optimizers of {', '.join(OPTIMIZERS)}; such as sgd."
)
flags.DEFINE_list("modes", list(MODES), f"Modes of {', '.join(MODES)}; such as train.")
flags.DEFINE_list(
    "precision",
    ["float32"],
    f"Types of {', '.join(PRECISIONS)} that dense parts compute in; such as float32,bfloat16.",
)
flags.DEFINE_list(
    "peers", list(lineup.PEERS), f"Peers of {', '.join(lineup.PEERS)}; such as jax_dense."
)
flags.DEFINE_enum("ids", "zipf", ["zipf", "uniform"], "Distribution of the ids of a table.")
flags.DEFINE_enum(
    "bags", "full", ["full", "varied"], "Bags of as many ids as allowed, or of 1 to that number."
)
flags.DEFINE_integer("rounds", 15, "Rounds in which two contestants are timed; such as 30.", 1)
flags.DEFINE_integer(
    "steps_per_round", 10, "Steps timed together; fewer if slow, more if fast; such as 20.", 1
)
flags.DEFINE_integer(
    "max_rows", 0, "Most rows of a table; 0 for as many as fit into 2.5 GiB; such as 100.", 0
)
flags.DEFINE_string("output", None, "File to make for all timings, as JSON; such as peers.json.")
flags.DEFINE_string(
    "environment", None, "Directory for PyTorch; without it, one in the cache; such as peers."
)


def chosen(flag: str, known: Sequence[Any]) -> list[Any]:
    """The values of a flag; all of them must be known."""
    values = FLAGS[flag].value or []
    unknown = [value for value in values if value not in known]
    if unknown or not values:
        raise UserError(
            f"--{flag}: expected some of {', '.join(known)}, got {', '.join(unknown) or 'none'}"
        )
    return values


def works() -> list[tuple[Precision, Mode, Optimizer | None]]:
    """Training with each of the optimizers; prediction once, without one; in each precision."""
    modes, optimizers = chosen("modes", MODES), chosen("optimizers", OPTIMIZERS)
    precisions = chosen("precision", PRECISIONS)
    return [
        (p, m, o)
        for p in precisions
        for m in modes
        for o in (optimizers if m == "train" else [None])
    ]


def configs() -> Iterator[tuple[str, Config, Config]]:
    """The name of each preset, its timed config, and its config with whole tables."""
    for name in FLAGS.presets:
        whole = preset(name)
        exponent = 0.0 if FLAGS.ids == "uniform" else whole.zipf_exponent or 1.05
        whole = dataclasses.replace(whole, zipf_exponent=exponent)
        yield name, cut(whole, FLAGS.max_rows), whole


def libraries(
    peers: Mapping[Precision, Sequence[Worker]], directory: Path
) -> dict[str, dict[str, str]]:
    """The library of the products by precision and by side."""
    found: dict[str, dict[str, str]] = {x: {"ours": products.by_jax(x)} for x in peers}
    if any(lineup.is_torch(worker.name) for each in peers.values() for worker in each):
        by_torch = products.by_torch(lineup.torch_products(directory))
        for precision, sides in found.items():
            sides["PyTorch"] = by_torch[precision]
    return found


def settings(by_precision: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The settings of all matches, and what they ran on."""
    names = ("ids", "bags", "rounds", "steps_per_round", "max_rows")
    return {
        **{name: FLAGS[name].value for name in names},
        "compared_steps": COMPARED_STEPS,
        "loss_tolerance": {x: TOLERANCES[x] for x in PRECISIONS if x in by_precision},
        "unsteady": UNSTEADY,
        "allocator": os.environ.get("GLIBC_TUNABLES"),
        "native_kernels": library.is_built(),
        "products": by_precision,
        "device": processor.name(),
        "instruction_sets": processor.instruction_sets(),
        "cores": os.cpu_count(),
    }


def matches(
    problem: Problem, peers: Sequence[Worker], bar: tqdm
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Plays match after match: ours stays in memory, the peers come and go."""
    with Contestant(lineup.ours()) as ours:
        bar.set_description("building ours")
        our_versions = ours.ask("build", problem=problem.to_json())
        losses = ours.ask("losses", steps=COMPARED_STEPS)["losses"]
        for worker in peers:
            bar.set_description(f"building {worker.name}")
            with Contestant(worker) as peer:
                versions = peer.ask("build", problem=problem.to_json())
                bar.set_description(worker.name)
                outcome = play(
                    ours,
                    losses,
                    peer,
                    problem.precision,
                    FLAGS.rounds,
                    FLAGS.steps_per_round,
                    bar.update,
                )
            yield (
                worker.name,
                {"our_versions": our_versions, "peer_versions": versions, "outcome": outcome},
            )


def main() -> None:
    """Goes through presets, batch sizes, works and peers, and reports each match when it ends."""
    check_writable("output")
    todo, sizes, planned = list(configs()), FLAGS.batch_sizes, works()
    directory = Path(FLAGS.environment) if FLAGS.environment else cache_directory() / "peers"
    names, precisions = chosen("peers", lineup.PEERS), chosen("precision", PRECISIONS)
    left = {x: lineup.suitable(names, x) for x in precisions}
    peers = {x: lineup.peers(left[x], directory) for x in precisions}
    by_precision = libraries(peers, directory)
    entries: list[report.Entry] = []
    each = sum(len(peers[precision]) for precision, _, _ in planned)
    total = len(todo) * len(sizes) * each * FLAGS.rounds
    print(report.introduction(by_precision))
    print(report.header(), flush=True)
    with tqdm(total=total, unit=" rounds", disable=None) as bar, tempfile.TemporaryDirectory() as t:
        weights, examples = Path(t) / "weights", Path(t) / "examples"
        weights.mkdir()
        examples.mkdir()
        for name, config, whole in todo:
            bar.set_description(f"drawing {name}")
            problem = make_problem(config, "train", "sgd", weights, examples)
            draw_weights(problem, config.seed)
            for size in sizes:
                config = dataclasses.replace(config, batch_size=size, evaluation_batch_size=size)
                draw_examples(config, examples, full_bags=FLAGS.bags == "full")
                for precision, mode, optimizer in planned:
                    config = dataclasses.replace(config, compute_dtype=precision)
                    problem = make_problem(config, mode, optimizer or "sgd", weights, examples)
                    for peer, found in matches(problem, peers[precision], bar):
                        entry = report.Entry(
                            preset=name,
                            rows=sum(config.table_rows),
                            whole_rows=sum(whole.table_rows),
                            batch_size=size,
                            mode=mode,
                            optimizer=optimizer,
                            precision=precision,
                            peer=peer,
                            **found,
                        )
                        entries.append(entry)
                        with bar.external_write_mode():
                            print(entry.row(), flush=True)
                        if FLAGS.output:
                            report.write(Path(FLAGS.output), settings(by_precision), entries)
    if text := report.footnote(entries):
        print(text)
    if text := report.warning(entries):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    run(main)

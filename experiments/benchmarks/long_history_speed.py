"""Times encoders of long histories: by length, and request-level batching against one by one.

    python -m experiments.benchmarks.long_history_speed
    python -m experiments.benchmarks.long_history_speed --encoder=hstu --lengths=200,500,1000

First, for each of ``--lengths``: milliseconds and compiled temporaries of scoring and of training
(the gradients of parameters, history and candidates) for ``--requests`` users with
``--candidates`` candidates each, and the slope of their logarithms over that of the length; 1 is
linear.

Then the candidates of one request of ``--shared_length`` tokens: with their history once, and with
a copy for each of them, in turn, round by round. It prints the ratio of the times with its
quartiles, and by how much results and gradients differ, relative to the largest one. That copies
must be looked up and sent as well isn't counted.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from dlrm_jax.attention.block_pairs import BLOCK
from dlrm_jax.attention.jagged import Candidates, Sequences, sequences_of
from dlrm_jax.cli.flags import FLAGS, define_numbers
from dlrm_jax.cli.run import run
from dlrm_jax.errors import UserError
from dlrm_jax.models.history_encoder import HistoryEncoder
from dlrm_jax.models.hstu_candidates import HSTUCandidates
from dlrm_jax.models.stca import STCA
from dlrm_jax.text_table import text_table
from experiments.benchmarks.timing import fastest_seconds, in_turn, mean_seconds, ratio_quartiles

flags.DEFINE_enum("encoder", "stca", ["stca", "hstu"], "Encoder.")
define_numbers(
    "lengths", (500, 1000, 2000, 5000, 10_000), "Lengths of a history; such as 100,200.", low=1
)
flags.DEFINE_integer("requests", 2, "Requests whose times are taken by length; such as 8.", 1)
flags.DEFINE_integer("candidates", 100, "Candidates of a request; such as 20.", 2)
flags.DEFINE_integer(
    "shared_length", 500, "Length of the history that candidates share; such as 1000.", 1
)
flags.DEFINE_integer("width", 64, "Width of the vectors; such as 128.", 1)
flags.DEFINE_integer("layers", 2, "Layers; such as 4.", 1)
flags.DEFINE_integer("heads", 4, "Heads of a layer, a divisor of the width; such as 8.", 1)
flags.DEFINE_integer("rounds", 5, "Rounds in which times are taken; such as 20.", 1)


class Packed(NamedTuple):
    """The arguments of a `HistoryEncoder`."""

    history: jax.Array
    sequences: Sequences
    candidates: jax.Array
    of: Candidates


class Compiled(NamedTuple):
    """An encoder's programs for one shape.

    Attributes:
        score: function that returns the results.
        train: function that returns gradients of parameters, history and candidates.
        bytes: temporaries of both.
    """

    score: Callable[[], Any]
    train: Callable[[], Any]
    bytes: tuple[int, int]


def packed(requests: int, length: int, copies: int) -> Packed:
    """Requests of one length; with copies, that many of each history, with a candidate each."""
    rng, width, candidates = np.random.default_rng(0), FLAGS.width, FLAGS.candidates
    histories = rng.normal(size=(requests, length, width)).astype("float32")
    times = np.sort(rng.integers(0, 10**6, (requests, length)), axis=1).astype("int32")
    own = rng.normal(size=(requests * candidates, width)).astype("float32")
    flat = np.repeat(histories, copies, axis=0).reshape(-1, width)
    filling = -len(flat) % BLOCK
    at = jnp.pad(jnp.asarray(np.repeat(times, copies, axis=0).reshape(-1)), (0, filling))
    lengths = jnp.full(requests * copies, length, "int32")
    number = jnp.arange(requests * candidates, dtype="int32")
    firsts = (number if copies > 1 else number // candidates) * length
    asked = jnp.full_like(number, 10**6)
    return Packed(
        jnp.pad(flat, [(0, filling), (0, 0)]),
        sequences_of(lengths, len(flat) + filling, at),
        jnp.asarray(own),
        Candidates(firsts, firsts + length, asked),
    )


def make_encoder() -> HistoryEncoder:
    """The encoder of the flags, for lengths up to the longest one."""
    longest = max(*FLAGS.lengths, FLAGS.shared_length)
    options: dict[str, Any] = {"layers": FLAGS.layers, "heads": FLAGS.heads, "rngs": nnx.Rngs(0)}
    if FLAGS.encoder == "stca":
        return STCA(FLAGS.width, longest, **options)
    return HSTUCandidates(FLAGS.width, longest, dropout=0.0, **options)


def compiled(encoder: HistoryEncoder, given: Packed) -> Compiled:
    """Compiles both programs for some requests."""
    graph, state = nnx.split(encoder)

    def score(state: Any, given: Packed) -> Any:
        return nnx.merge(graph, state)(*given)

    def loss(state: Any, history: Any, candidates: Any, given: Packed) -> Any:
        own = given._replace(history=history, candidates=candidates)
        # Of squares there would be no gradient, since results of STCA are normalized.
        return jnp.mean(given.candidates * score(state, own))

    def train(state: Any, given: Packed) -> Any:
        gradient = jax.grad(loss, (0, 1, 2), allow_int=True)
        return gradient(state, given.history, given.candidates, given)

    programs = [jax.jit(each).lower(state, given).compile() for each in (score, train)]
    calls = [functools.partial(_finished, program, state, given) for program in programs]
    return Compiled(calls[0], calls[1], (_temporaries(programs[0]), _temporaries(programs[1])))


def _finished(program: Callable[..., Any], *given: Any) -> Any:
    return jax.block_until_ready(program(*given))


def _temporaries(program: Any) -> int:
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0


def by_length(encoder: HistoryEncoder) -> None:
    """Prints times and memory by length, and their slopes."""
    found: list[tuple[float, ...]] = []
    for length in FLAGS.lengths:
        own = compiled(encoder, packed(FLAGS.requests, length, 1))
        seconds = (fastest_seconds(call, FLAGS.rounds) for call in (own.score, own.train))
        found.append((*seconds, *own.bytes))
    rows = [
        [
            f"{length:,}",
            *(f"{1e3 * x:.1f}" for x in own[:2]),
            *(f"{x / 2**20:.1f}" for x in own[2:]),
        ]
        for length, own in zip(FLAGS.lengths, found, strict=True)
    ]
    if len(found) > 1:
        slopes = np.polyfit(np.log(FLAGS.lengths), np.log(found), 1)[0]
        rows.append(["slope", *(f"{slope:.2f}" for slope in slopes)])
    print(
        text_table(["length", "score ms", "train ms", "score MiB", "train MiB"], rows), flush=True
    )


def by_request(encoder: HistoryEncoder) -> None:
    """Prints how much faster candidates are that share a history, and that results are equal."""
    shared = compiled(encoder, packed(1, FLAGS.shared_length, 1))
    single = compiled(encoder, packed(1, FLAGS.shared_length, FLAGS.candidates))
    print(f"\n{FLAGS.candidates} candidates of a history of {FLAGS.shared_length:,}")
    rows = []
    for name in ("score", "train"):
        calls = [getattr(own, name) for own in (single, shared)]
        results = [call() for call in calls]
        if name == "train":  # the history's own gradients are of other shapes
            results = [(state, candidates) for state, _, candidates in results]
        runs = {
            key: functools.partial(mean_seconds, map(lambda _, own=call: own(), range(10**9)), 1)
            for key, call in zip(("single", "shared"), calls, strict=True)
        }
        seconds = in_turn(runs, FLAGS.rounds)
        low, ratio, high = ratio_quartiles(seconds["single"], seconds["shared"])
        times = (f"{1e3 * statistics.median(seconds[key]):.1f}" for key in ("single", "shared"))
        rows.append(
            [name, *times, f"{ratio:.1f} ({low:.1f} to {high:.1f})", f"{_difference(*results):.1e}"]
        )
    print(text_table(["", "one by one ms", "shared ms", "ratio", "difference"], rows))


def _difference(one: Any, other: Any) -> float:
    """The largest difference of two trees of arrays, relative to the largest number."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    pairs = [(x, y) for x, y in pairs if x.dtype == jnp.float32]
    largest = max(float(jnp.max(jnp.abs(x))) for x, _ in pairs)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs) / largest


def main() -> None:
    """Prints both tables."""
    if len(set(FLAGS.lengths)) < len(FLAGS.lengths):
        raise UserError(f"--lengths: expected each once, got {', '.join(map(str, FLAGS.lengths))}")
    encoder = make_encoder()
    by_length(encoder)
    by_request(encoder)


if __name__ == "__main__":
    run(main)

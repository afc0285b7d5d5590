"""Contestants compute the same, and what goes wrong among them is told in one message."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from main_job import run
from peer_problem import CONFIG, draw
from quick_machine import quickly

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.peers.drawing import cut
from experiments.benchmarks.peers.match import check_losses, play
from experiments.benchmarks.peers.problem import Optimizer, Problem, mean_loss
from experiments.benchmarks.peers.workers.jax_dense import jax_dense
from experiments.benchmarks.peers.workers.ours import ours

PROGRAM = ("-m", "experiments.benchmarks.peers")
STEPS = 10


@pytest.mark.parametrize(
    "optimizer", [pytest.param("sgd", marks=pytest.mark.thorough), "rowwise_adagrad"]
)
def test_sparse_and_dense_gradients_give_the_same_losses(tmp_path: Path, optimizer: Optimizer):
    problem = draw(tmp_path, "train", optimizer)
    sparse, dense = (make(problem, make_mesh("1x1")) for make in (ours, jax_dense))
    losses = [[float(x.step(i)) for i in range(STEPS)] for x in (sparse, dense)]
    check_losses("jax_dense", *losses)
    assert min(losses[0]) < losses[0][0] - 0.01, "nothing was learnt that could have gone wrong"


def test_predictions_are_those_of_plain_numpy(tmp_path: Path):
    problem = draw(tmp_path, "infer", "sgd")
    expected = logits(problem, 3)
    for make in (ours, jax_dense):
        found = np.asarray(make(problem, make_mesh("1x1")).step(3))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    labels = problem.batch(3).labels
    p = 1 / (1 + np.exp(-expected))
    assert mean_loss(expected, labels) == pytest.approx(
        -np.mean(np.where(labels == 1, np.log(p), np.log(1 - p)))
    )


def logits(problem: Problem, number: int) -> np.ndarray:
    """What the description of the problem comes to, from the bags that PyTorch's peers get."""

    def mlp(name: str, x: np.ndarray) -> np.ndarray:
        layers = problem.layers(name)
        for i, (weight, bias) in enumerate(layers):
            x = x @ weight.T + bias
            if name == "bottom" or i + 1 < len(layers):
                x = np.maximum(x, 0)
        return x

    x = mlp("bottom", problem.batch(number).dense.astype(np.float64))
    vectors = [x]
    for i, bag in enumerate(problem.bags(number)):
        table = problem.table(i)
        ranges = zip(bag.offsets[:-1], bag.offsets[1:], strict=True)
        vectors.append(np.stack([table[bag.ids[a:b]].sum(axis=0) for a, b in ranges]))
    stacked = np.stack(vectors, axis=1)
    row, column = np.tril_indices(len(vectors), -1)
    products = (stacked @ stacked.swapaxes(1, 2))[:, row, column]
    return mlp("top", np.concatenate([x, products], axis=1))[:, 0]


def test_full_bags_are_full_and_ids_lie_in_their_tables(tmp_path: Path):
    ids = np.load(Path(draw(tmp_path, "train", "sgd", full_bags=True).examples) / "ids.npy")
    assert ids.min() == 0
    rows = np.repeat(CONFIG.table_rows, CONFIG.table_bag_lengths)
    np.testing.assert_array_less(ids.max(axis=(0, 1)), rows)
    varied = np.load(Path(draw(tmp_path, "train", "sgd").examples) / "ids.npy")
    assert varied.min() == -1
    np.testing.assert_array_equal(ids[varied >= 0], varied[varied >= 0])


def test_tables_are_cut_to_what_fits():
    assert cut(CONFIG, 0) == CONFIG
    assert cut(CONFIG, 5).table_rows == (5, 5, 3)


def scripted(losses: list[float], endless: bool) -> Worker:
    return Worker(
        "scripted",
        Path(sys.executable),
        "scripted_peer",
        [*map(str, losses), *(["--endless"] if endless else [])],
        {"PYTHONPATH": str(Path(__file__).parent)},
    )


def meet(problem: Problem, ours: list[float], theirs: list[float], endless: bool = False):
    with (
        Contestant(scripted(ours, endless)) as one,
        Contestant(scripted(theirs, endless)) as other,
    ):
        for contestant in (one, other):
            answer = contestant.ask("build", problem=problem.to_json())
            assert answer["numpy"] == np.__version__
        losses = one.ask("losses", steps=3)["losses"]
        return play(one, losses, other, rounds=2, steps_per_round=1, on_quiet_round=lambda: None)


def test_a_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("experiments.benchmarks.peers.match.wait_for_quiet", lambda limit: None)
    monkeypatch.setattr("experiments.benchmarks.peers.match.round_trip_us", lambda: 0.5)
    problem = draw(tmp_path, "train", "sgd")
    outcome = meet(problem, [0.7, 0.6, 0.5], [0.7, 0.6, 0.50001], endless=True)
    assert outcome.loss_distance == pytest.approx(2e-5, rel=1e-3)
    assert len(outcome.rounds) == 2
    lower, median, upper = outcome.ratio_quartiles()
    assert 0 < lower <= median <= upper
    assert outcome.ours.peak_bytes > 2**20
    assert outcome.core_round_trip_us == {"min": 0.5, "max": 0.5}


def test_a_wrong_loss_is_named(tmp_path: Path):
    problem = draw(tmp_path, "train", "sgd")
    with pytest.raises(UserError, match=r"scripted .*at step 1 its loss is 0\.61, ours is 0\.6;"):
        meet(problem, [0.7, 0.6, 0.5], [0.7, 0.61, 0.5])
    with pytest.raises(UserError, match=r"at step 2 its loss is nan"):
        meet(problem, [0.7, 0.6, 0.5], [0.7, 0.6, float("nan")])


def test_a_peer_that_dies_is_named_with_its_last_words(tmp_path: Path):
    problem = draw(tmp_path, "train", "sgd")
    with pytest.raises(UserError, match=r"scripted ended, code 1, when asked for 'losses'") as e:
        meet(problem, [0.7, 0.6, 0.5], [0.7])
    assert str(e.value).endswith("It said: MemoryError: no memory left")
    with (
        Contestant(Worker("none", Path(sys.executable), "no_such_module")) as missing,
        pytest.raises(UserError, match=r"none ended, code 1, .*No module named"),
    ):
        missing.ask("build", problem=problem.to_json())


TINY = """
import dataclasses
from dlrm_jax import presets
presets.PRESETS["tiny"] = dataclasses.replace(
    presets.preset("small"), table_rows=(70, 40, 3), top_mlp=(8, 1)
)
"""


@pytest.mark.thorough
def test_the_program_from_flags_to_files(tmp_path: Path):
    output = tmp_path / "peers.json"
    result = run(
        *("--presets=tiny", "--max_rows=50", "--batch_sizes=16", "--peers=jax_dense"),
        *("--modes=train", "--optimizers=sgd", "--rounds=1", "--steps_per_round=1"),
        f"--output={output}",
        program=quickly(PROGRAM[1], TINY),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    kernels, _, header, rule, row = result.stdout.splitlines()
    assert re.match("ours has (no )?native kernels", kernels)
    assert len(header.split("|")) == len(rule.split("|")) == len(row.split("|"))
    assert row.startswith("| tiny | 93 of 113 | 16 | train, sgd | jax_dense | ")
    content = json.loads(output.read_text())
    (match,) = content["matches"]
    assert len(match["outcome"]["ours"]["losses"]) == STEPS
    assert match["ratio"] > 0
    assert "jax" in match["our_versions"]


def test_unknown_names_are_refused():
    result = run("--peers=jax_dense,tensorflow", program=PROGRAM)
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: --peers: expected .*torch_plain.*, got tensorflow\n", result.stderr
    )

"""Contestants compute the same, and what goes wrong among them is told in one message."""

from __future__ import annotations

import dataclasses
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
from experiments.benchmarks.peers import lineup, products, report
from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.peers.drawing import cut
from experiments.benchmarks.peers.match import Outcome, Round, Side, check_losses, play
from experiments.benchmarks.peers.problem import Optimizer, Precision, Problem, mean_loss
from experiments.benchmarks.peers.workers.jax_dense import jax_dense
from experiments.benchmarks.peers.workers.ours import ours

PROGRAM = ("-m", "experiments.benchmarks.peers")
STEPS = 10


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        pytest.param("sgd", "float32", marks=pytest.mark.thorough),
        pytest.param("sgd", "bfloat16", marks=pytest.mark.thorough),
        ("rowwise_adagrad", "float32"),
    ],
)
def test_sparse_and_dense_gradients_give_the_same_losses(
    tmp_path: Path, optimizer: Optimizer, precision: Precision
):
    problem = draw(tmp_path, "train", optimizer, precision=precision)
    sparse, dense = (make(problem, make_mesh("1x1")) for make in (ours, jax_dense))
    losses = [[float(x.step(i)) for i in range(STEPS)] for x in (sparse, dense)]
    check_losses("jax_dense", losses[0], losses[1], precision)
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


def test_bfloat16_is_computed_in_bfloat16(tmp_path: Path):
    problem = draw(tmp_path, "infer", "sgd", precision="bfloat16")
    found = np.asarray(ours(problem, make_mesh("1x1")).step(3))
    distance = np.abs(found - logits(problem, 3)).max()
    assert 1e-4 < distance < 0.02


@pytest.fixture
def environment() -> Path:
    """The one that the program makes."""
    found = Path.home() / ".cache" / "dlrm_jax" / "peers"
    if not (found / "complete.txt").exists():
        pytest.skip(f"no PyTorch in {found}: python -m experiments.benchmarks.peers makes it")
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["torch_plain", "fbgemm_compiled", "torchrec"])
def test_pytorch_computes_in_bfloat16_too(tmp_path: Path, environment: Path, name: str):
    problem = draw(tmp_path, "train", "sgd", precision="bfloat16")
    # As in matches: at the test's rate, rounding is amplified to twice the tolerance.
    problem = dataclasses.replace(problem, learning_rate=0.01)
    own = ours(problem, make_mesh("1x1"))
    losses = [float(own.step(i)) for i in range(STEPS)]
    with Contestant(*lineup.peers([name], environment)) as peer:
        peer.ask("build", problem=problem.to_json())
        found = peer.ask("losses", steps=STEPS)["losses"]
    check_losses(name, losses, found, "bfloat16")
    exact = mean_loss(logits(problem, 0), problem.batch(0).labels)
    with pytest.raises(UserError, match="computes something else"):
        check_losses(name, [exact], found[:1], "float32")


@pytest.mark.thorough
def test_pytorch_says_which_library_it_uses(environment: Path):
    found = products.by_torch(lineup.torch_products(environment))
    assert found["float32"] == "MKL"
    assert set(found) == {"float32", "bfloat16"}


def test_libraries_are_read_from_what_they_report():
    found = products.reported(
        "float32\nMKL_VERBOSE oneMKL 2024.0\nMKL_VERBOSE SGEMM(T,N,256,256,512) 10.95ms\n"
        "bfloat16\nonednn_verbose,v1,info,cpu,runtime:OpenMP,nthr:2\n"
        "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx512_core_bf16,undef,src:bf16\n"
    )
    assert found == {"float32": "MKL", "bfloat16": "oneDNN (brg_matmul:avx512_core_bf16)"}
    silent = products.reported("float32\nMKL_VERBOSE oneMKL 2024.0\nbfloat16\n")
    assert set(silent.values()) == {"neither MKL nor oneDNN"}


def test_forms_that_are_of_float32_alone_are_left_out(capsys: pytest.CaptureFixture[str]):
    names = ["fbgemm_onednn", "fbgemm_compiled", "jax_dense"]
    assert lineup.suitable(names, "float32") == names
    assert not capsys.readouterr().err
    assert lineup.suitable(names, "bfloat16") == names[1:]
    assert capsys.readouterr().err.startswith("left out fbgemm_onednn: ")
    with pytest.raises(UserError, match=r"--peers: .*--precision=bfloat16, got fbgemm_onednn: "):
        lineup.suitable(names[:1], "bfloat16")


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
        return play(one, losses, other, "float32", 2, 1, on_quiet_round=lambda: None)


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


def test_losses_of_bfloat16_may_differ_by_one_rounding():
    check_losses("peer", [0.7], [0.7 * 1.003], "bfloat16")
    with pytest.raises(UserError, match=r"at step 0 .* at most 0\.004, got 0\.005"):
        check_losses("peer", [0.7], [0.7 * 1.005], "bfloat16")
    with pytest.raises(UserError, match=r"at step 0 .* at most 0\.0001, got 0\.003"):
        check_losses("peer", [0.7], [0.7 * 1.003], "float32")


def test_ratios_that_differ_between_rounds_are_marked():
    side = Side((0.7,), 1, 2**20)

    def entry(theirs: list[float]) -> report.Entry:
        outcome = Outcome(side, side, tuple(Round(1.0, x, 0.0, 0.5) for x in theirs), len(theirs))
        work = ("train", "sgd", "bfloat16")
        return report.Entry("kaggle", 9, 9, 128, *work, "fbgemm", {}, {}, outcome)

    steady, unsteady = entry([2, 2, 2.1, 2.19, 9]), entry([2, 2, 2.1, 2.22, 2.22])
    for each, cell in ((steady, "| 2.1 | 2 to 2.19 |"), (unsteady, "| 2.1\\* | 2 to 2.22 |")):
        assert each.row().startswith("| kaggle | 9 | 128 | train, sgd | bfloat16 | fbgemm | ")
        assert cell in each.row()
    assert [x.as_json()["is_unsteady"] for x in (steady, unsteady)] == [False, True]
    assert report.footnote([steady]) == ""
    assert "more than 10%" in report.footnote([steady, unsteady])


def test_the_output_begins_with_the_machine(monkeypatch: pytest.MonkeyPatch):
    lines = {"model name": "Processor 9", "flags": "fpu amx_bf16 avx2 avx512f_other"}
    monkeypatch.setattr("dlrm_jax.processor._line", lines.__getitem__)
    text = report.introduction({"bfloat16": {"ours": "native kernels", "PyTorch": "oneDNN"}})
    first, _, last, empty = text.split("\n")
    assert re.fullmatch(r"processor: Processor 9, \d+ cores, with avx2 amx_bf16", first)
    assert last == "products of bfloat16: ours by native kernels, PyTorch by oneDNN"
    assert not empty


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
        "--precision=float32,bfloat16",
        f"--output={output}",
        program=quickly(PROGRAM[1], TINY),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    processor, kernels, *libraries, _, header, rule, row, short = result.stdout.splitlines()
    assert re.match(r"processor: .+, \d+ cores, with ", processor)
    assert re.match("ours has (no )?native kernels", kernels)
    assert len(header.split("|")) == len(rule.split("|")) == len(row.split("|"))
    assert libraries[0] == "products of float32: ours by XLA"
    assert libraries[1].startswith("products of bfloat16: ours by ")
    assert row.startswith("| tiny | 93 of 113 | 16 | train, sgd | float32 | jax_dense | ")
    assert short.startswith("| tiny | 93 of 113 | 16 | train, sgd | bfloat16 | jax_dense | ")
    content = json.loads(output.read_text())
    match, other = content["matches"]
    assert [x["precision"] for x in (match, other)] == ["float32", "bfloat16"]
    assert content["settings"]["products"]["float32"] == {"ours": "XLA"}
    assert len(match["outcome"]["ours"]["losses"]) == STEPS
    assert match["ratio"] > 0
    assert "jax" in match["our_versions"]


def test_unknown_names_are_refused():
    result = run("--peers=jax_dense,tensorflow", program=PROGRAM)
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: --peers: expected .*torch_plain.*, got tensorflow\n", result.stderr
    )

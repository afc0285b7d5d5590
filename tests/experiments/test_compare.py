"""Models compared: what is kept, what is done again, and who is refused."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from main_job import in_background, run

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.config_data import generate_data
from experiments.compare import contest
from experiments.compare.tasks import Choices, Clicks, EpochBatches
from experiments.compare.trials import Contender, Result

COMPARE = ("-m", "experiments.compare")
MOVIELENS = ("-m", "experiments.movielens")
SMALL = (
    "--table_rows=7,30,40",
    "--dense_features=2",
    "--examples=4000",
    "--embedding_dim=4",
    "--bottom_mlp=4",
    "--top_mlp=8,1",
    "--batch_size=128",
    "--evaluation_batch_size=512",
    "--evaluations=3",
    "--learning_rates=0.01,0.1",
)


def succeed(program: tuple[str, ...], *flags: str) -> str:
    result = run(*flags, program=program)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def results(workdir: Path):
    return json.loads((workdir / "results.json").read_text())["results"]


def trials(workdir: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (workdir / "trials").iterdir()}


@pytest.mark.thorough
def test_each_trial_is_kept_and_only_what_is_missing_is_done_again(tmp_path):
    flags = (*SMALL, "--models=logistic_regression,dcn_v2:rank=2", "--seeds=2",
             f"--workdir={tmp_path}")  # fmt: skip
    shown = succeed(COMPARE, *flags)
    assert "dcn_v2:rank=2, rowwise_adagrad: test auc " in shown
    linear, dcn = results(tmp_path)
    assert linear["contender"] == {"name": "logistic_regression", "optimizer": "rowwise_adagrad"}
    assert [len(each["trials"]) for each in (linear, dcn)] == [2, 2]
    # Weights of ids and of dense features, and the bias.
    assert linear["trials"][0]["parameters"] == 7 + 30 + 40 + 2 + 1
    for result in (linear, dcn):
        rates = {t["trial"]["learning_rate"] for t in result["trials"]}
        assert rates == {result["learning_rate"]}
        assert [t["trial"]["seed"] for t in result["trials"]] == [0, 1]
        for trial in result["trials"]:
            assert [point["step"] for point in trial["curve"]] == [9, 18, 25]
            best = min(point["validation"]["log_loss"] for point in trial["curve"])
            assert trial["validation"]["log_loss"] == best
            assert trial["test"]["examples"] == 400
            assert trial["milliseconds"] > 0 < trial["temporary_bytes"]
    # The rate was chosen by validation, among both.
    searched = [json.loads(p.read_text()) for p in (tmp_path / "trials").glob("dcn_v2-*-0-*.json")]
    losses = {t["trial"]["learning_rate"]: t["validation"]["log_loss"] for t in searched}
    assert set(losses) == {0.01, 0.1}
    assert dcn["learning_rate"] == min(losses, key=lambda rate: losses[rate])
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("<img") == 2
    assert "dcn_v2:rank=2" in page

    before = trials(tmp_path)
    assert len(before) == 2 * (2 + 1)
    missing = next(iter(before))
    (tmp_path / "trials" / missing).unlink()
    table = [line for line in shown.splitlines() if line.startswith(("logistic", "dcn_v2"))]
    again = succeed(COMPARE, *flags)
    after = trials(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {missing}
    # Metrics are the same again, times aren't.
    metrics = [line.split()[:15] for line in table[:2]]
    repeated = [line.split()[:15] for line in again.splitlines() if line.split()[0] in
                ("logistic_regression", "dcn_v2:rank=2")]  # fmt: skip
    assert repeated == metrics


@pytest.mark.thorough
def test_interrupted_it_goes_on(tmp_path):
    flags = [*SMALL, "--models=dlrm", "--seeds=1", "--epochs=150", f"--workdir={tmp_path}"]
    with in_background(*flags, program=COMPARE) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("trials/*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        result = process.end(signal.SIGINT)
    assert result.returncode == 130, result.stderr[-2000:]
    first = trials(tmp_path)
    assert len(first) == 1
    succeed(COMPARE, *flags)
    assert len(trials(tmp_path)) == 2
    assert first.items() <= trials(tmp_path).items()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--models=fmm",), "error: --models: expected some of logistic_regression, "),
        (("--target_auc=0.7",), "--target_auc has no effect: --evaluations decides"),
        (("--models=fm", "--top_mlp=8,1"), "--top_mlp has no effect without a model that has it"),
        (("--models=fm,fm",), "name fm, rowwise_adagrad twice"),
        (("--learning_rates=1,-1",), "--learning_rates: expected positive, finite numbers, got -1"),
        (("--learning_rates=0",), "--learning_rates: expected positive, finite numbers, got 0"),
        (("--model=fm",), "--model has no effect: --models, "),
        (("--models=ncf", "--seeds=1"), "is for two fields, a user and an item"),
        (("--models=dlrm", "--learning_rates=1e30", "--optimizers=sgd", "--seeds=1", *SMALL[:-1]),
         "dlrm with sgd diverges at all learning rates of 1e+30"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(flags, message, tmp_path):
    result = run(*flags, f"--workdir={tmp_path}", program=COMPARE)
    assert result.returncode == 2, result.stderr[-2000:]
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compression": "mixed_dimensions", "compress_above": 1000},
         "^compression: mixed_dimensions compresses no table, since the largest has 40 rows"),
        ({"frozen_tables": ("C3",), "table_optimizers": ("C3=sgd",)},
         "^table_optimizers: C3 is one of frozen_tables"),
    ],
)  # fmt: skip
def test_no_trial_is_of_settings_without_an_effect_on_the_tables(fields, message, tmp_path):
    config = Config(table_rows=(7, 30, 40), examples=100, **fields)
    task = Clicks(generate_data(config))
    with pytest.raises(UserError, match=message):
        contest.compare([Contender("dlrm", "sgd")], config, task, make_mesh("1x1"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_that_another_comparison_replaces_are_named(tmp_path, capsys):
    def text(data: str, *names: str) -> str:
        results = [
            {"contender": {"name": name, "optimizer": "sgd"}, "trials": []} for name in names
        ]
        return json.dumps({"data": data, "results": results})

    path = tmp_path / "results.json"
    contest._print_replaced(path, text("a", "dlrm"))
    path.write_text(text("a", "dlrm", "fm"))
    contest._print_replaced(path, text("a", "dlrm", "fm", "dcn"))
    assert not capsys.readouterr().out
    contest._print_replaced(path, text("a", "dlrm"))
    assert "results of fm; its trials stay in trials/" in capsys.readouterr().out
    contest._print_replaced(path, text("b", "dlrm", "fm"))
    assert "results of dlrm, fm; its trials" in capsys.readouterr().out


@pytest.fixture(scope="module")
def movielens(tmp_path_factory) -> Path:
    """Users of two tastes, of whom each has rated half of the movies."""
    directory = tmp_path_factory.mktemp("ml")
    rng = np.random.default_rng(0)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(60):
        rated = rng.choice(150, 30, replace=False)
        # The taste shows in what is watched, and in what is liked of it.
        rated = np.unique(np.where(rng.random(30) < 0.7, rated // 2 * 2 + user % 2, rated))
        for order, movie in enumerate(rng.permutation(rated)):
            liked = (movie - user) % 2 == 0
            lines.append(f"{user},{movie},{5 if liked else 2},{1000 + order}")
    (directory / "ratings.csv").write_text("\n".join(lines) + "\n")
    return directory


MOVIES = (
    "--seeds=1", "--batch_size=64", "--evaluation_batch_size=512", "--embedding_dim=4",
    "--bottom_mlp=4", "--top_mlp=8,1", "--evaluations=2", "--learning_rates=0.1",
)  # fmt: skip


@pytest.mark.thorough
def test_clicks_of_movielens_with_histories(movielens, tmp_path):
    flags = ("--features=user,item", "--history=5", "--models=din:target=item,dlrm", *MOVIES)
    shown = succeed(MOVIELENS, f"--data={movielens}", f"--workdir={tmp_path}", *flags)
    assert "features: user, item, history" in shown
    din, dlrm = results(tmp_path)
    assert din["contender"]["name"] == "din:target=item"
    assert din["trials"][0]["trial"]["shared_tables"] == ["history=item"]
    assert min(each["trials"][0]["test"]["auc"] for each in (din, dlrm)) > 0.7


@pytest.mark.thorough
def test_rankings_of_movielens(movielens, tmp_path):
    flags = ("--task=ranking", "--features=user,item", "--models=ncf,dlrm", "--epochs=4", *MOVIES)
    shown = succeed(MOVIELENS, f"--data={movielens}", f"--workdir={tmp_path}", *flags)
    assert "NDCG@10" in shown
    ncf, _ = results(tmp_path)
    test = ncf["trials"][0]["test"]
    assert test["hr@10"] > 0.15  # 0.1 by chance, among 100
    assert 0 < test["ndcg@10"] <= test["hr@10"]
    assert [point["step"] for point in ncf["trials"][0]["curve"]][-1] % 4 == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--split=weekday",), "--split: expected one of random, time, leave_one_out, rows=FILE"),
        (("--features=age",), "expected some of the features user, item"),
        (("--models=dlrm,din:target=genre", "--history=3"), "target: expected a field of one id"),
    ],
)
def test_what_movielens_cannot_do_is_refused(flags, message, movielens, tmp_path):
    result = run(f"--data={movielens}", f"--workdir={tmp_path}", *MOVIES, *flags, program=MOVIELENS)
    assert result.returncode == 2, result.stderr[-2000:]
    assert message in result.stderr.splitlines()[-1]


def test_each_epoch_has_its_own_examples():
    def train(epoch: int) -> Split:
        labels = np.arange(7, dtype=np.float32) + 100 * epoch
        return Split((Examples(np.zeros((7, 0), "f4"), np.zeros((7, 1), "i4"), labels),))

    batches = EpochBatches(train, Config(batch_size=3))
    seen = [batches[step].labels for step in (0, 1, 2, 3, 0)]
    assert batches.steps_per_epoch == 2
    assert [set(labels // 100) for labels in seen] == [{0}, {0}, {1}, {1}, {0}]
    np.testing.assert_array_equal(seen[0], seen[4])


def test_a_contender_is_a_model_with_its_options():
    config = Contender("mine:Products:scale=2:layers=3", "sgd").config(Config(), 0.5, 7)
    assert (config.model, config.model_options) == ("mine:Products", ("scale=2", "layers=3"))
    assert (config.optimizer, config.learning_rate, config.seed) == ("sgd", 0.5, 7)


def test_a_seed_that_diverged_counts_as_not_a_number():
    trials = [{"test": {"auc": 0.7}}, {"test": None}, {"test": {"auc": None}}]
    found = Result(Contender("fm", "sgd"), 0.1, trials).test("auc")
    assert found[0] == 0.7
    assert np.isnan(found[1:]).all()


def test_what_is_better():
    data = generate_data(Config(table_rows=(5,), examples=100))
    clicks, choices = Clicks(data), Choices(data, 2, lambda epoch: data.train)
    assert clicks.badness({"log_loss": 0.3}) < clicks.badness({"log_loss": 0.4})
    assert choices.badness({"ndcg@10": 0.5}) < choices.badness({"ndcg@10": 0.4})
    assert clicks.badness({"log_loss": None}) == clicks.badness(None) == float("inf")
    found = choices.metrics("test", np.array([2.0, 1, 1, 2], "f4"), np.zeros(4, "f4"))
    assert found["hr@10"] == 1

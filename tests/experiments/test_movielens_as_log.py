"""MovieLens by the general path, preprocess and train, against its own program."""

import dataclasses
import json

import numpy as np
import pytest
from documents import ROOT, blocks
from main_job import run, summary
from planted_tastes import FORMS, write_split, write_tastes

from dlrm_jax.data.arrays import Split
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.movielens.formats import read_tables
from dlrm_jax.data.movielens.loading import load_movielens
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.job import fit
from dlrm_jax.mesh import make_mesh
from dlrm_jax.presets import preset
from dlrm_jax.training.config_data import for_data
from experiments.compare.tasks import Clicks
from experiments.compare.trials import run_trial

FEATURES = ("user", "item")
SEEDS = 3


SCHEMAS = [
    json.loads(block)
    for language, block in blocks((ROOT / "docs" / "data.md").read_text())
    if language == "json" and "label_at_least" in block
]


def fields_of(form: str) -> dict:
    """The schema that the documentation has for a file."""
    [schema] = [each for each in SCHEMAS if each["separator"] == FORMS[form]]
    return schema


@pytest.fixture(scope="module", params=FORMS)
def both(request, tmp_path_factory):
    """The data set of MovieLens' program, and that of the prepared log, split alike."""
    directory = tmp_path_factory.mktemp("ml")
    ratings = write_tastes(directory, request.param, users=60, items=400, each=50)
    write_split(directory / "split.txt", 60 * 50)
    split = f"rows={directory / 'split.txt'}"
    own = load_movielens(directory, split, features=FEATURES).dataset
    options = Options(Schema.from_fields(fields_of(request.param)), split=split)
    preprocess([ratings], directory / "log", options)
    return directory, own, load_directory(directory / "log")


def test_the_examples_are_the_same(both):
    """But for their order, and for the numbers of values that are equally frequent."""
    directory, own, log = both
    assert own.table_rows == log.table_rows
    order = read_tables(directory).order  # the program has ratings in the order of time
    parts = np.array((directory / "split.txt").read_text().split())[order]
    pairs = []
    for name, split in own.splits.items():
        in_file = np.argsort(order[parts == name])
        np.testing.assert_array_equal(split.labels[:][in_file], log.splits[name].labels[:])
        pairs.append(np.stack([ids_of(split)[in_file], ids_of(log.splits[name])]))
    for number in range(len(FEATURES)):
        ids = np.unique(np.concatenate(pairs, axis=1)[:, :, number], axis=1)
        assert [len(np.unique(of_one)) for of_one in ids] == [ids.shape[1]] * 2
        assert ((ids[0] == 0) == (ids[1] == 0)).all()
    assert [(each == 0).any() for each in pairs] == [False, True, True]  # unseen items


def ids_of(split: Split) -> np.ndarray:
    return np.concatenate([np.asarray(day.ids) for day in split.days])


def are_within_the_spread(one: list[float], other: list[float]) -> bool:
    """Whether the means over seeds differ by no more than the seeds do."""
    return abs(np.mean(one) - np.mean(other)) <= max(np.ptp(one), np.ptp(other))


@pytest.mark.thorough
@pytest.mark.parametrize("both", ["ratings.dat"], indirect=True)
def test_a_model_of_the_log_is_as_good(both):
    _, own, log = both
    mesh = make_mesh("1x1")
    base = dataclasses.replace(
        preset("movielens"),
        model="fm",
        embedding_dim=8,
        learning_rate=0.1,
        epochs=6,
        bottom_mlp=(8,),
    )
    found = []
    for seed in range(2):
        config = dataclasses.replace(base, seed=seed)
        trial = run_trial(for_data(config, own), Clicks(own), mesh, evaluations=1)
        found.append([trial["test"]["auc"], fit(config, log, mesh).summary["test"]["auc"]])
    one, other = np.transpose(found)
    assert are_within_the_spread(one, other)
    assert min(*one, *other) > 0.7


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_the_commands_train_models_that_are_as_good(tmp_path, form):
    ratings = write_tastes(tmp_path, form, users=300, items=400, each=60)
    write_split(tmp_path / "split.txt", 300 * 60)
    (tmp_path / "schema.json").write_text(json.dumps(fields_of(form)))
    split = f"--split=rows={tmp_path / 'split.txt'}"

    def succeed(command: str, *flags: str, program: tuple[str, ...] = ("-m", "dlrm_jax")) -> str:
        result = run(*flags, program=(*program, *command.split()))
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    succeed("preprocess", f"--input={ratings}", f"--schema={tmp_path / 'schema.json'}", split,
            f"--output={tmp_path / 'log'}")  # fmt: skip
    own = (f"--data={tmp_path}", split, "--features=user,item", "--models=dlrm",
           "--learning_rates=0.03", f"--seeds={SEEDS}", "--evaluations=10")  # fmt: skip
    succeed("experiments.movielens", *own, f"--workdir={tmp_path / 'own'}", program=("-m",))
    (result,) = json.loads((tmp_path / "own" / "results.json").read_text())["results"]
    one, other = [trial["test"]["auc"] for trial in result["trials"]], []
    for seed in range(SEEDS):
        workdir = tmp_path / f"run{seed}"
        succeed("train", "--mesh=1x1", "--preset=movielens", f"--data={tmp_path / 'log'}",
                "--learning_rate=0.03", "--best_metric=log_loss", "--eval_every=56",
                f"--seed={seed}", f"--workdir={workdir}")  # fmt: skip
        other.append(summary(workdir)["test"]["auc"])
    assert are_within_the_spread(one, other), (one, other)
    assert min(*one, *other) > 0.85

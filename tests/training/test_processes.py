"""Two and four processes with eight devices in all: the numbers are the oracle's."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from drawn_batches import make_batches, oracle_arguments
from named_arrays import arrays_of, initial_arrays, oracle_arrays, start
from oracle import Oracle
from processes_job import RESUMED, STEPS, STEPS_BEFORE
from setups import MESHES, OTHER, ROWS, Setup, train
from started_jobs import started

from dlrm_jax.coordinator import CLUSTER, join
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.embedding.plan import PLACEMENTS
from dlrm_jax.errors import UserError
from dlrm_jax.processes import agreed, on_process_0
from dlrm_jax.training.checkpoint import Checkpoints

SECONDS = 900  # several times 80 s of processor time, as other programs may compute meanwhile
THOROUGH_SECONDS = 3000

LATER = [name for name in OPTIMIZERS if name not in OTHER.values()]  # in their own setups alone
SHARED = [mesh for mesh in MESHES if mesh != "1x1"]  # by several processes
# By the number of processes. Each has two optimizers, and every placement.
FRESH = {
    2: [Setup("8x1", name, placed="columns") for name in ("sgd", *LATER)],
    4: [
        Setup("4x2", name, placed="devices", shard_dense_optimizer=True)
        for name in ("adagrad", *LATER)
    ],
}


def all_of(mesh: str) -> list[Setup]:
    placed = "rows", "columns", "devices"
    return [Setup(mesh, name, each) for name in OPTIMIZERS for each in placed]


@pytest.fixture(scope="module")
def x64():
    jax.config.update("jax_enable_x64", True)  # in Orbax's threads, too
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def begun(x64: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes start from: weights, and a checkpoint of this process."""
    directory, setup = tmp_path_factory.mktemp("begun"), Setup("2x4", "adam")
    initial, learner = initial_arrays(setup), setup.learner()
    np.savez(directory / "initial.npz", allow_pickle=False, **initial)
    state = start(learner, initial)
    state, _ = train(learner, state, make_batches(setup.dtype), STEPS_BEFORE)
    Checkpoints(directory / "before", {}).save(learner, state, {}, None)
    (directory / "before" / f"{STEPS_BEFORE + 1:08d}").mkdir()
    change_a_checksum(directory / "before", STEPS_BEFORE + 2, "tables/")
    change_a_checksum(directory / "before", STEPS_BEFORE + 3, "dense/params")
    return directory


def change_a_checksum(directory: Path, step: int, kind: str) -> None:
    """Makes a checkpoint with an array that isn't the one that was saved."""
    path = shutil.copytree(directory / f"{STEPS_BEFORE:08d}", directory / f"{step:08d}")
    metadata = json.loads((path / "metadata.json").read_text()) | {"step": step}
    name = next(name for name in metadata["checksums"] if name.startswith(kind))
    metadata["checksums"][name] = f"float64 {0:016x}"
    (path / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, FRESH[2], STEPS), id="2 processes"),
        pytest.param((4, FRESH[4], STEPS), id="4 processes", marks=pytest.mark.thorough),
        *(
            pytest.param((n, all_of(x), 50), id=f"{n} processes {x}", marks=pytest.mark.thorough)
            for n in FRESH
            for x in SHARED
        ),
    ],
)
def trained(request: pytest.FixtureRequest, begun: Path, tmp_path_factory: pytest.TempPathFactory):
    """The number of processes, and the directory of what they have left."""
    (count, chosen, steps), directory = request.param, tmp_path_factory.mktemp("processes")
    shutil.copytree(begun, directory, dirs_exist_ok=True)
    fields = "mesh", "optimizer", "placed", "shard_dense_optimizer"
    setups = [{name: getattr(setup, name) for name in fields} for setup in chosen]
    (directory / "wanted.json").write_text(json.dumps({"setups": setups, "steps": steps}))
    run_job(count, directory, SECONDS if steps == STEPS else THOROUGH_SECONDS)
    return count, directory


def run_job(count: int, directory: Path, seconds: float) -> None:
    with started(Path(__file__).with_name("processes_job.py"), count, directory) as processes:
        processes.wait(seconds)


def oracle_after(setup: Setup, steps: int) -> tuple[Oracle, list[float]]:
    oracle = setup.oracle(initial_arrays(setup))
    inputs = [oracle_arguments(batch) for batch in make_batches(setup.dtype)]
    return oracle, [oracle.step(**inputs[i % len(inputs)]) for i in range(steps)]


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], of: str = ""):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(
            actual[name], array, rtol=1e-9, atol=1e-9, err_msg=f"{name} {of}"
        )


def check_training_is_the_oracles(trained):
    _, directory = trained
    wanted = json.loads((directory / "wanted.json").read_text())
    for number, fields in enumerate(wanted["setups"]):
        setup = Setup(**fields)
        with np.load(directory / f"trained-{number}.npz") as saved:
            found = dict(saved)
        oracle, losses = oracle_after(setup, wanted["steps"])
        np.testing.assert_allclose(
            found.pop("losses"), losses, rtol=1e-9, atol=1e-9, err_msg=str(setup)
        )
        assert_same(found, oracle_arrays(oracle), str(setup))


def check_checkpoints_of_one_process_and_of_several(trained):
    """Begun in one process, gone on with in several, and read in one again."""
    _, directory = trained
    setup = Setup("8x1", "adam")
    learner = setup.learner()
    state = Checkpoints(directory / "after", {}).restore(learner, STEPS)
    oracle, _ = oracle_after(setup, STEPS)
    assert_same(arrays_of(learner, state), oracle_arrays(oracle))


def check_what_one_process_knows_all_do(trained):
    count, directory = trained
    same = "give all of them the same flags and data"
    seen = [json.loads((directory / f"seen-{index}.json").read_text()) for index in range(count)]
    touched = seen[0]["touched"]
    (name,) = touched[0]
    assert [x.get(name) for x in touched] == [
        [*range(count)],
        [row for row in range(max(ROWS.values())) if row % 3 < count],
        [5],
        None,
    ]
    for index, found in enumerate(seen):
        assert found.pop("touched") == touched
        assert found.pop("bytes") == [[i] * 3000 * i for i in range(count)]
        assert found.pop("led") == [[x + count - 1, x] for x in (3, 4)]
        assert found.pop("answers") == [[x + count - 1, x + index] for x in (3, 4)]
        assert found == {
            "largest of two": [count - 1, 0],
            # The first one's step 0 was the answer to all of these, the second one's to two more.
            "two steps later": [[1, count - 1], [0, 0], [0, 0], [int(count > 3), 30 + count - 1]],
            "largest": 10 * (count - 1),
            "result": ["of", 0],
            "long": "x" * 5000,
            "error": "of 0",
            "refused": "[Errno 28] full in 0",
            "bug": "KeyError(0)" if index else "0",
            "differing": (
                f"b is {index} in process {index} and 0 in process 0; {same}"
                if index
                else "nothing"
            ),
        }


def test_several_processes(trained):
    """One test, since workers that shared these checks out would each train anew for theirs."""
    check_training_is_the_oracles(trained)
    check_checkpoints_of_one_process_and_of_several(trained)
    check_what_one_process_knows_all_do(trained)


def test_every_optimizer_mesh_and_placement_is_among_them(x64: None):
    found = set()
    for count in FRESH:
        setups = (*FRESH[count], RESUMED[count])
        names = {setup.table_optimizer(table)[0] for setup in setups for table in ROWS}
        assert names == set(OPTIMIZERS)
        plan = RESUMED[count].learner().collection.plan
        found |= {plan.placement(piece.table) for piece in plan.pieces}
        found |= {x.placed for x in setups}
    assert found >= {*PLACEMENTS} - {"fully_sharded"} | {"devices"}
    meshes = {setup.mesh for setup in (*itertools.chain(*FRESH.values()), *RESUMED.values())}
    assert meshes == set(SHARED)


def test_a_single_process_agrees_with_itself():
    assert agreed(15) == 15
    assert on_process_0(lambda: (1, 2)) == (1, 2)
    with pytest.raises(UserError, match="as it is"):
        on_process_0(lambda: _fail("as it is"))


def _fail(text: str):
    raise UserError(text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("host:1", 2, 2), "expected a process number from 0 to 1, got 2"),
        (("host:1", 2, None), "expected the number of this process"),
        ((CLUSTER, 2, 1), "and none with 'cluster'"),
        *(
            ((where, 2, 1), f"expected HOST:PORT, .*, or cluster, got '{where}'")
            for where in ("host", ":1", "host:", "host:x", "host:0", "host:65536")
        ),
    ],
)
def test_a_wrong_place_is_refused(arguments, text):
    with pytest.raises(UserError, match=text):
        join(*arguments)

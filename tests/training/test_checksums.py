"""No other number than those that were saved is ever loaded from a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from named_arrays import arrays_of
from saved_run import CONFIG, DATA, STEPS, save, train_and_save

from dlrm_jax.embedding.checksum import checksum_on_host
from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.table_files import write_table
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training import checksums
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.checksums import LoadedSums, SavedSums
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.warm_start import warm_start

Trained = tuple[Learner, TrainState, Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_and_save(tmp_path_factory.mktemp("trained"), "1x2")


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    """The checkpoint, to change."""
    return shutil.copytree(trained[2], tmp_path / "checkpoints" / trained[2].name)


def restore(copy: Path, learner: Learner) -> TrainState:
    return Checkpoints(copy.parent, {"data": DATA, **CONFIG.identity()}).restore(learner, STEPS)


def metadata_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "metadata.json").read_text())


def write(path: Path, metadata: dict[str, Any]) -> None:
    (path / "metadata.json").write_text(json.dumps(metadata))


def users(learner: Learner, path: Path) -> Iterator[Callable[[], object]]:
    """All that load a table and the dense parameters."""
    yield lambda: restore(path, learner)
    yield lambda: Predictor.load(path, make_mesh("1x1"))
    yield lambda: warm_start(learner, 0, path, ["C2", "bottom"], [DATA])


def test_each_array_has_a_checksum(trained: Trained):
    learner, state, path = trained
    noted = metadata_of(path)["checksums"]
    dense = 1 + len(jax.tree.leaves((state.params, state.optimizer, state.model_state)))
    assert len(noted) == dense + len(metadata_of(path)["arrays"])
    for table, key, array in learner.collection.iter_arrays(state.embedding):
        first, second = checksum_on_host(np.asarray(array)).tolist()
        assert noted[f"tables/{table.name}/{key}"] == f"{array.dtype} {first:08x}{second:08x}"
    assert noted["dense/step"].startswith("int32 ")


@pytest.mark.parametrize(
    "mesh", [*(pytest.param(x, marks=pytest.mark.thorough) for x in ("1x1", "2x4")), "1x8"]
)
def test_they_are_the_same_on_any_mesh_and_plan(trained: Trained, mesh: str, tmp_path: Path):
    learner, state, path = trained
    config = dataclasses.replace(CONFIG, placements=("C1=table_wise", "C2=column_wise"))
    other = make_learner(config, make_mesh(mesh))
    restored = restore(path, other)
    again = save(tmp_path, other, restored, config)
    assert metadata_of(again)["checksums"] == metadata_of(path)["checksums"]
    wanted, found = arrays_of(learner, state), arrays_of(other, restored)
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("name", ["tables/C2/table", "dense/params.bottom.layers.0.kernel"])
@pytest.mark.parametrize(
    "change",
    ["checksum", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("dtype", "absent"))],
)
def test_another_checksum_is_refused(trained: Trained, copy: Path, name: str, change: str):
    metadata = metadata_of(copy)
    dtype, number = metadata["checksums"].pop(name).split()
    if change != "absent":
        other = f"{dtype} {int(number, 16) ^ 1:016x}" if change == "checksum" else f"int32 {number}"
        metadata["checksums"][name] = other
    write(copy, metadata)
    for use in users(trained[0], copy):
        with pytest.raises(DamagedCheckpointError, match=f"{name}"):
            use()


def test_a_table_that_is_written_as_a_file_is_checked(copy: Path, tmp_path: Path):
    metadata = metadata_of(copy)
    metadata["checksums"]["tables/C2/table"] = "float32 0000000000000000"
    write(copy, metadata)
    with pytest.raises(DamagedCheckpointError, match="tables/C2/table aren't those that were"):
        write_table(copy, read_metadata(copy), "C2", None, tmp_path, "npy")
    write_table(copy, read_metadata(copy), "C3", None, tmp_path, "npy")


def test_a_checkpoint_without_checksums_is_read(trained: Trained, copy: Path):
    metadata = metadata_of(copy)
    del metadata["checksums"]
    write(copy, metadata)
    for use in users(trained[0], copy):
        use()


@pytest.mark.parametrize(
    "noted", [3, "float32", "float32 12", "flaot32 0123456789abcdef", "object 0123456789abcdef"]
)
def test_checksums_that_are_none(copy: Path, noted: object):
    metadata = metadata_of(copy)
    metadata["checksums"]["dense/step"] = noted
    write(copy, metadata)
    with pytest.raises(DamagedCheckpointError, match=r"its metadata\.json has no checksums"):
        read_metadata(copy)


def test_the_one_before_is_restored(trained: Trained, tmp_path: Path):
    learner, state, path = trained
    latest = shutil.copytree(path, tmp_path / "checkpoints" / path.name)
    save(tmp_path, learner, dataclasses.replace(state, step=jnp.array(STEPS - 1)))
    metadata = metadata_of(latest)
    metadata["checksums"]["dense/step"] = "int32 0000000000000000"
    write(latest, metadata)
    checkpoints = Checkpoints(latest.parent, {"data": DATA, **CONFIG.identity()})
    assert checkpoints.restore_latest(learner)[1] == STEPS - 1
    assert latest.with_suffix(".damaged").is_dir()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content with a bit flipped, or some bytes zeroed."""
    changed, at = bytearray(content), chance.randrange(len(content))
    if chance.random() < 0.5:
        changed[at] ^= 1 << chance.randrange(8)
    else:
        length = min(len(changed) - at, chance.choice([4, 64, 4096]))
        changed[at : at + length] = bytes(length)
    return bytes(changed)


def test_a_damaged_file_never_gives_other_numbers(trained: Trained, copy: Path):
    learner, state, _ = trained
    wanted = jax.tree.map(np.asarray, state)
    chance, refused, undecided = random.Random(0), 0, []
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.stat().st_size]
    for path in [*files, *(path for path in files if path.parent.name == "d")] * 2:
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, chance))
        try:
            found = jax.tree.map(np.asarray, restore(copy, learner))
            jax.tree.map(np.testing.assert_array_equal, wanted, found)
        except DamagedCheckpointError:
            refused += 1
        except UserError:
            undecided.append(path.parent.name)
        path.write_bytes(whole)
    assert refused
    assert "d" not in undecided  # of other files, Orbax doesn't say for certain what is wrong


@pytest.mark.parametrize(
    ("mesh", "dtype"),
    [
        *(("2x4", dtype) for dtype in ("f4", "f2", jnp.bfloat16, "i4", "u4")),
        ("1x1", "f4"),
        ("1x8", "f4"),
    ],
)
def test_the_devices_give_the_number_of_the_host(
    mesh: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
):
    x = (100 * np.random.default_rng(0).random((24, 16))).astype(dtype)
    specs = [(), (None, ("data", "model")), ("model",), ("data", "model"), (("model", "data"),)]
    noted = []
    for limit in (0, checksums._ON_DEVICE_BYTES):
        monkeypatch.setattr(checksums, "_ON_DEVICE_BYTES", limit)
        sums = SavedSums()
        for i, spec in enumerate(specs):
            array = jax.device_put(x, NamedSharding(make_mesh(mesh), PartitionSpec(*spec)))
            sums.add(str(i), array)
            loaded = LoadedSums(Path("x"), {"checksums": {"x": f"{x.dtype} {number(x)}"}})
            loaded.add("x", array)
            loaded.check()
        sums.add("alone", jnp.asarray(x))
        sums.add("empty", jnp.zeros((0, 3), dtype))
        noted.append(sums.metadata())
    assert noted[0] == noted[1]
    assert noted[0].pop("empty") == f"{x.dtype} {0:016x}"
    assert set(noted[0].values()) == {f"{x.dtype} {number(x)}"}


def number(x: np.ndarray) -> str:
    return "".join(f"{word:08x}" for word in checksum_on_host(x).tolist())


@pytest.mark.parametrize("limit", [0, 2**24])
def test_each_copy_is_checked(limit: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checksums, "_ON_DEVICE_BYTES", limit)
    x, mesh = np.arange(8.0, dtype=np.float32), make_mesh("2x1")
    parts = [jax.device_put(y, d) for y, d in zip((x, -x), mesh.devices.flat, strict=True)]
    sharding = NamedSharding(mesh, PartitionSpec())
    array = jax.make_array_from_single_device_arrays(x.shape, sharding, parts)
    saved = SavedSums()
    saved.add("x", array)
    loaded = LoadedSums(Path("x"), {"checksums": saved.metadata()})
    loaded.add("x", array)
    with pytest.raises(DamagedCheckpointError, match="numbers of x"):
        loaded.check()


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tables_start_in_another_dtype(dtype: str, tmp_path: Path):
    config = dataclasses.replace(CONFIG, table_dtype=dtype)
    _, _, path = train_and_save(tmp_path, "2x2", config)
    for other in ("float32", "bfloat16"):
        there = make_learner(dataclasses.replace(CONFIG, table_dtype=other), make_mesh("1x2"))
        state = warm_start(there, 0, path, ["C1", "C2", "C3", "top"], [DATA])
        assert int(state.step) == 0
    write_table(path, read_metadata(path), "C2", None, tmp_path, "npy")
    assert np.load(tmp_path / "C2.npy").dtype == np.float32


def test_no_array_as_large_as_a_table_is_made(monkeypatch: pytest.MonkeyPatch):
    mesh, spec = make_mesh("1x2"), PartitionSpec(None, "model")
    table = jax.ShapeDtypeStruct((1_000_003, 8), "f4", sharding=NamedSharding(mesh, spec))
    memory = checksums._program(mesh, spec).lower(table).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < table.size * 4 / 20
    # XLA would convert these to float32 on a CPU.
    monkeypatch.setattr(checksums, "_ON_DEVICE_BYTES", 0)
    monkeypatch.delattr(checksums, "_sums_on_devices")
    SavedSums().add("x", jnp.zeros((8, 4), jnp.bfloat16))

"""PyTorch itself: its files are read, ours are loaded by it, and both predict the same.

These tests need torch beside JAX, and torchrec. They take them from the environment that
``python -m experiments.benchmarks.peers`` makes.
"""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import DCN, DLRM
from documents import ROOT, program
from in_memory import InMemory
from saved_run import examples

from dlrm_jax.config import Config
from dlrm_jax.conversion.exported import Exporter
from dlrm_jax.conversion.foreign_model import ForeignModel
from dlrm_jax.conversion.imported import Importer
from dlrm_jax.conversion.model_note import ModelNote
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.conversion.tensor_files import open_tensors
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor

ENVIRONMENT = Path.home() / ".cache" / "dlrm_jax" / "peers"
KINDS = {
    "dlrm": DLRM,
    "dlrm_self": dataclasses.replace(DLRM, self_interaction=True),
    "dlrm_cat": dataclasses.replace(DLRM, interaction="cat"),
    "torchrec": dataclasses.replace(DLRM, features=("user", "item", "shop"), table_optimizers=()),
    "dcn": dataclasses.replace(DCN, features=("user", "item", "shop"), table_optimizers=()),
}


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """PyTorch of the peers' environment, imported beside JAX."""
    if not (ENVIRONMENT / "complete.txt").exists():
        pytest.skip(f"no PyTorch in {ENVIRONMENT}: python -m experiments.benchmarks.peers makes it")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    sys.path.append(str(ENVIRONMENT / "lib" / version / "site-packages"))
    yield pytest.importorskip("torch")
    sys.path.pop()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("default")  # those of torch as it is imported
def test_both_ways(kind: str, torch: Any, tmp_path: Path):
    config, form = KINDS[kind], "dlrm" if kind.startswith("dlrm") else "torchrec"
    rows = examples(50, seed=3, config=config)
    arrays = {
        "dense": np.concatenate([day.dense for day in rows.days]),
        "ids": np.concatenate([day.ids for day in rows.days]),
        "ends": np.cumsum(config.table_bag_lengths),
    }
    np.savez(tmp_path / "rows.npz", allow_pickle=False, **arrays)

    def pytorch(action: str, path: Path) -> np.ndarray:
        script = Path(__file__).with_name("torch_models.py")
        output = tmp_path / f"{action}.npy"
        command = [ENVIRONMENT / "bin" / "python", script, action, kind]
        subprocess.run([*command, path, tmp_path / "rows.npz", output], check=True, timeout=120)
        return np.load(output)

    theirs, ours = tmp_path / "theirs.pt", tmp_path / "ours.pt"
    expected = pytorch("make", theirs)
    asked = {"interaction": config.interaction, "self_interaction": config.self_interaction}
    model = ForeignModel.open(theirs, settings=asked)
    assert model.form == form
    Importer(model, config, None).write(tmp_path / "run")
    found = Predictor.load(tmp_path / "run", batch_size=64).predict(rows)
    assert np.ptp(expected) > 0.01, "nothing to compare"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    exporter = Exporter(OwnModel.open(tmp_path / "run"), form)
    exporter.write(ours)
    noted = exporter.model, exporter._tables
    assert np.array_equal(pytorch("load", ours), expected)
    first, second = open_tensors(theirs), open_tensors(ours)
    assert (first.note, ForeignModel.open(ours).note) == (None, ModelNote.of(*noted))
    for name in first.shapes:
        again = name.removeprefix(model.wrapper)
        assert np.array_equal(first.read(name), second.read(again)), name


@pytest.mark.thorough
@pytest.mark.filterwarnings("default")
def test_the_documentations_program_loads_a_file(torch: Any, tmp_path: Path):
    files, _, _ = program((ROOT / "docs" / "convert.md").read_text())
    (tmp_path / "in_torchrec.py").write_text(files["in_torchrec.py"])
    config = Config(
        table_rows=(1000, 200), features=("user", "item"), bottom_mlp=(64, 16), embedding_dim=16
    )
    Exporter(OwnModel.of(InMemory.of(config)), "torchrec").write(tmp_path / "model.pt")
    command = [ENVIRONMENT / "bin" / "python", "in_torchrec.py"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)


class Code:
    """What a file that runs code holds."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return print, ("run",)


@pytest.mark.thorough
@pytest.mark.filterwarnings("default")
def test_what_is_refused(torch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, weight = tmp_path / "x.pt", torch.ones(3, 2)

    def refused(content: Any, message: str) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=message):
            open_tensors(path)

    refused({"state_dict": {"a": weight}, "x": Code()}, "it has print, which is no tensor")
    assert "run" not in capsys.readouterr().out
    sharded = importlib.import_module("torch.distributed._shard.sharded_tensor")
    refused(
        {"a": sharded.ShardedTensor}, r"spread over processes \(sharded_tensor\); gather them first"
    )
    refused({"iter": 3}, "expected a state dict, .* got keys 'iter'")
    refused([weight], "expected a state dict, .* got list")
    refused({}, "expected a state dict")
    refused({"a": weight.to_sparse()}, "tensor a isn't dense numbers")
    endless: dict[str, Any] = {}
    endless["model"] = endless
    refused(endless, "expected a state dict, .* got keys 'model'")
    torch.save({"a": weight}, path)
    whole = path.read_bytes()
    refused(whole[: len(whole) // 2], "can't be read as a file of torch.save: RuntimeError")
    refused(b"\x80\x02hello", "can't be read as a file of torch.save")
    refused(b"\x80\x04", "can't be read as a file of torch.save")
    torch.save({"module.a": weight.bfloat16(), "b": weight.int()}, path)
    assert np.array_equal(open_tensors(path).read("module.a"), np.ones((3, 2), np.float32))
    with pytest.raises(UserError, match="tensor b has int32, expected one of float16"):
        open_tensors(path).read("b")
    negative = torch.view_as_complex(-torch.ones(3, 2, 2)).conj().imag  # by a flag of its own
    torch.save({"a": negative}, path)
    assert np.array_equal(open_tensors(path).read("a"), np.ones((3, 2), np.float32))
    torch.save({"a": weight}, path, _use_new_zipfile_serialization=False)
    assert open_tensors(path).shapes == {"a": (3, 2)}

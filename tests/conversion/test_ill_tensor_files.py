"""What a file of tensors must have, and the settings that it must fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from converted import DLRM, importer
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

from dlrm_jax.conversion.foreign_model import ForeignModel
from dlrm_jax.conversion.imported import Importer
from dlrm_jax.conversion.tensor_files import check_suffix, open_tensors
from dlrm_jax.errors import UserError


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float64])
def test_other_types_become_float32(dtype: type, files, tmp_path: Path):
    there = {name: x.astype(dtype) for name, x in load_file(files["dlrm"]).items()}
    save_file(there, tmp_path / "x.safetensors")
    file = open_tensors(tmp_path / "x.safetensors")
    assert set(file.dtypes.values()) == {np.dtype(dtype).name}
    for name, x in there.items():
        read = file.read(name)
        assert read.dtype == np.float32
        assert np.array_equal(read, x.astype(np.float32))


def with_value(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["emb_l.1.weight"][5, 2] = value

    return change


ILL: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "no tensors": (lambda x: x.clear(), "expected a DLRM of the reference or of TorchRec, got"),
    "others": (
        lambda x: [x.__setitem__(f"a.{k}", x.pop(k)) for k in [*x]][:0] or x.pop("a.bot_l.0.bias"),
        "has no bot_l.0.bias",
    ),
    "no table": (lambda x: [x.pop(f"emb_l.{i}.weight") for i in range(3)], "there are no tables"),
    "a table between": (lambda x: x.pop("emb_l.1.weight"), "expected tables from 0 on, got 0, 2"),
    "a table less": (lambda x: x.pop("emb_l.2.weight"), "a table or a layer is missing, unless"),
    "a layer less": (lambda x: x.pop("top_l.2.weight"), "has no top_l.2.weight"),
    "no layers": (lambda x: [x.pop(k) for k in [*x] if "_l.0.w" not in k or "emb" in k], "tables"),
    "state of an optimizer": (
        lambda x: x.update(momentum=np.ones(2)), "aren't of a plain DLRM.*: momentum"
    ),
    "quotient and remainder": (
        lambda x: x.update({"emb_l.3.weight_q": np.ones((2, 2))}), "quotient-remainder tables"
    ),
    "NaN": (with_value(np.nan), r"emb_l.1.weight has nan at \[5, 2\]"),
    "too large": (
        lambda x: x.update({"top_l.0.bias": np.full(7, 1e300)}), r"top_l.0.bias has inf at \[0\]"
    ),
    "integers": (
        lambda x: x.update({"top_l.0.bias": np.ones(7, np.int8)}), "has I8, expected one of float16"
    ),
    "rows": (
        lambda x: x.update({"emb_l.1.weight": np.ones((31, 4), np.float32)}),
        r"table C2: expected shape \(30, 4\), got \(31, 4\) in emb_l.1.weight",
    ),
    "a number for a table": (
        lambda x: x.update({"emb_l.0.weight": np.array(1, np.float32)}),
        r"table 0: expected shape \(rows, columns\), got \(\)",
    ),
    "columns": (
        lambda x: x.update({"emb_l.1.weight": np.ones((30, 5), np.float32)}),
        r"table 1: expected 4 columns, as table 0 has, got shape \(30, 5\)",
    ),
    "width": (
        lambda x: x.update({"top_l.2.weight": np.ones((5, 8), np.float32)}),
        r"layer top.layers.1.kernel: expected shape \(7, 5\) by the settings, got \(8, 5\) in top",
    ),
    "axes": (
        lambda x: x.update({"top_l.2.weight": np.ones(5, np.float32)}), "expected 2 axes for top.l"
    ),
}  # fmt: skip


@pytest.mark.parametrize("ill", ILL)
def test_what_a_file_must_have(ill: str, files, tmp_path: Path):
    change, message = ILL[ill]
    tensors = {name: x.copy() for name, x in load_file(files["dlrm"]).items()}
    change(tensors)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=message):
        read_all(path)


def read_all(path: Path) -> None:
    found = importer(path, DLRM)
    for name in DLRM.table_names:
        found.table(name)
    found.layers()


def test_settings_of_another_model(files):
    def error(**changes: object) -> str:
        config = dataclasses.replace(DLRM, **changes)  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError) as raised:
            Importer(ForeignModel.open(files["dlrm"]), config, None)
        return str(raised.value)

    assert "layer bottom.layers.0.kernel: expected shape (3, 8) by the" in error(bottom_mlp=(8, 4))
    assert "top.layers.3.bias is a layer of the settings alone" in error(top_mlp=(7, 5, 2, 1))
    assert "cross.0.bias is a layer of the settings alone" in error(model="dcn_v2")
    assert "has 3 tables, and there are 2" in error(
        table_rows=(9, 30), bag_lengths=(1,), table_optimizers=()
    )


def test_another_interaction_of_the_same_widths(files, tmp_path: Path):
    """Three tables of two columns: six products of pairs, or six numbers side by side."""
    narrow = {name: x[:, :2] for name, x in load_file(files["torchrec"]).items() if x.ndim == 2}
    tensors = load_file(files["torchrec"]) | {x: narrow[x] for x in narrow if "bags" in x}
    last = "dense_arch.model._mlp.1._linear"
    tensors |= {f"{last}.{x}": tensors[f"{last}.{x}"][:2] for x in ("weight", "bias")}
    first = "over_arch.model.0._mlp.0._linear.weight"
    save_file(tensors | {first: tensors[first][:, :8]}, path := tmp_path / "x.safetensors")
    same = dataclasses.replace(DLRM, embedding_dim=2, bottom_mlp=(6, 2))
    assert importer(path, same).layers()["top.layers.0.kernel"].shape == (8, 7)
    for changes, message in (
        ({"interaction": "cat"}, "interaction: expected 'dot', that of the file, got 'cat'"),
        (
            {"model": "dcn_v2", "model_options": ("layers=0", "rank=1")},
            "model: expected 'dlrm', that of the file, got 'dcn_v2'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            importer(path, dataclasses.replace(same, **changes))


def test_damaged_files(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x"
    for content, message in (
        (b"", "begins with b''"),
        (b"user,item\n1,2\n", "begins with b'user,item'"),
        (files["dlrm"].read_bytes()[:-3], "can't be read as safetensors: .* incomplete metadata"),
        (files["dlrm"].read_bytes()[:90], "can't be read as safetensors"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_tensors(path)
    for missing, message in ((tmp_path / "no", "cannot read .*no: No such"), (tmp_path, "directo")):
        with pytest.raises(UserError, match=message):
            open_tensors(missing)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    path.write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=r"torch isn't installed; run pip install -e '.\[torch\]'"):
        open_tensors(path)
    with pytest.raises(UserError, match="torch isn't installed"):
        check_suffix(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"ends in .pt, .pth or .safetensors, got .*x.bin"):
        check_suffix(tmp_path / "x.bin")

"""Models from and to PyTorch: bit by bit, with PyTorch's predictions, and what can't leave."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from converted import DLRM, KINDS, TABLE, importer, predictions
from in_memory import InMemory
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from saved_run import examples

from dlrm_jax.conversion.exported import Exporter
from dlrm_jax.conversion.foreign_model import ForeignModel
from dlrm_jax.conversion.imported import Importer
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.conversion.table_order import places
from dlrm_jax.conversion.tensor_names import Format
from dlrm_jax.data.directory import load_directory
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor

DATA = Path(__file__).parents[1] / "previous" / "data"


def own(importer: Importer, like: OwnModel) -> OwnModel:
    """The model that comes in, without a run of it on disk."""
    names = [name for name, _ in like.tables()]
    tables = [(name, importer.table(name)) for name in names]
    return dataclasses.replace(like, layers=importer.layers(), tables=lambda: iter(tables))


@pytest.mark.parametrize("kind", KINDS)
def test_out_and_in_again_is_equal_to_the_last_bit(kind: str, models, files, tmp_path: Path):
    config, form = KINDS[kind]
    model = OwnModel.of(models[kind])
    back = own(importer(files[kind], config), model)
    assert back.layers.keys() == model.layers.keys()
    for name, array in model.layers.items():
        assert np.array_equal(back.layers[name], array), name
    for (table, rows), (_, expected) in zip(back.tables(), model.tables(), strict=True):
        assert np.array_equal(rows, expected), table
    Exporter(back, form).write(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == files[kind].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_that_of_the_library(kind: str, models, files, tmp_path: Path):
    """Whose header has the tensors in the order of their names, and keys in any order."""
    with safe_open(files[kind], "numpy") as file:
        metadata = file.metadata()
    assert (
        json.loads(metadata["tables"])
        == Exporter(OwnModel.of(models[kind]), KINDS[kind][1])._tables
    )
    save_file(load_file(files[kind]), tmp_path / "x.safetensors", metadata)
    ours, theirs = map(parts_of, (files[kind], tmp_path / "x.safetensors"))
    assert ours == theirs
    assert [*ours[0]] == [*theirs[0]]


def parts_of(path: Path) -> tuple[dict, int, bytes]:
    """The header of a safetensors file, its length, and the rest."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), length, content[8 + length :]


def test_a_table_at_a_time_is_in_memory(models, tmp_path: Path):
    model = OwnModel.of(models["dcn"])
    alive: list[weakref.ref[np.ndarray]] = []

    def tables() -> Iterator[tuple[str, np.ndarray]]:
        for name, rows in model.tables():
            assert sum(x() is not None for x in alive) <= 1, "that of the loop before"
            copy = rows.copy()
            alive.append(weakref.ref(copy))
            yield name, copy

    Exporter(dataclasses.replace(model, tables=tables), "torchrec").write(
        tmp_path / "x.safetensors"
    )
    assert len(alive) == 3


def test_both_formats_predict_the_same(files):
    """The pairs of one are those of the other in another order."""
    rows = examples(40, seed=1, config=DLRM)
    numbered = [f"emb_l.{i}.weight" for i in range(3)]
    named = [TABLE.format(f"t_C{i}") for i in (1, 2, 3)]
    found = predictions(files["torchrec"], named, rows, DLRM, upper=True)
    expected = predictions(files["dlrm"], numbered, rows, DLRM, upper=False)
    assert np.ptp(expected) > 0.01, "nothing to compare"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["torchrec", "dcn"])
def test_tables_are_matched_by_name(kind: str, models, files, tmp_path: Path):
    """The file's model reads C3, C1, C2; ours C1, C2, C3: products and columns move."""
    config, order = KINDS[kind][0], ("t_C3", "t_C1", "t_C2")
    model = own(importer(files[kind], config, order), OwnModel.of(models[kind]))
    Exporter(model, "torchrec").write(tmp_path / "ours.safetensors")
    rows = examples(40, seed=2, config=config)
    theirs, ours = (
        predictions(path, [TABLE.format(x) for x in names], rows, config, upper=True)
        for path, names in (
            (files[kind], order),
            (tmp_path / "ours.safetensors", ("t_C1", "t_C2", "t_C3")),
        )
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_run_predicts_what_the_formula_says(kind: str, models, files, tmp_path: Path):
    config, form = KINDS[kind]
    importer(files[kind], config).write(tmp_path / "run")
    rows = examples(40, seed=1, config=config)
    tables = Exporter(OwnModel.of(models[kind]), form).tables
    expected = predictions(files[kind], tables, rows, config, form == "torchrec")
    found = Predictor.load(tmp_path / "run", batch_size=64).predict(rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_order_of_tables(files, tmp_path: Path):
    tensors, many = load_file(files["torchrec"]), tmp_path / "many.safetensors"
    rows = tensors.pop(TABLE.format("t_C1"))
    wide = {TABLE.format(f"t_cat_{i}"): rows for i in range(8)}  # with C2 and C3: 10 and 11
    layer = "over_arch.model.0._mlp.0._linear.weight"
    others = {name: x for name, x in tensors.items() if "embedding_bags" not in name}
    others[layer] = np.zeros((7, 4 + 66), np.float32)
    wide |= {TABLE.format(f"t_cat_{i}"): rows for i in (8, 9, 10)}
    save_file(wide | others, many)
    assert ForeignModel.open(many).tables == tuple(f"t_cat_{i}" for i in range(11))
    unordered = {TABLE.format(name): rows for name in ("t_user", "t_item", "t_shop")}
    save_file(unordered | others | {layer: tensors[layer]}, tmp_path / "named.safetensors")
    with pytest.raises(UserError, match="give it: --table_order=t_item,t_shop,t_user"):
        ForeignModel.open(tmp_path / "named.safetensors")
    order = ("t_user", "t_item", "t_shop")
    assert ForeignModel.open(tmp_path / "named.safetensors", table_order=order).tables == order
    with pytest.raises(UserError, match=r"table_order: expected the tables of .* each once"):
        ForeignModel.open(tmp_path / "named.safetensors", table_order=order[:2])
    assert places("f", ["t_b", "t_a"], ["a", "b"], "torchrec") == [1, 0]
    assert places("f", ["x", "y"], ["a", "b"], "torchrec") == [0, 1]
    assert places("f", ["b", "a"], ["a", "b"], "dlrm") == [0, 1]
    with pytest.raises(UserError, match="'t_x' by order and 't_a' by name"):
        places("f", ["t_x", "t_a"], ["a", "b"], "torchrec")
    with pytest.raises(UserError, match="has 1 tables, and there are 2 categorical columns: a, b"):
        places("f", ["t_x"], ["a", "b"], "torchrec")


def test_data_without_some_negatives_change_probabilities(files):
    data = dataclasses.replace(load_directory(DATA), kept_negatives={"train": 0.25})
    model = ForeignModel.open(files["dlrm"])
    foreign = dataclasses.replace(model, note=None)
    assert [*Importer(foreign, DLRM, data).remarks()] == [
        "of the data, 0.25 of the negative training examples were kept; predictions and metrics "
        "are corrected to all of them, AUC as it is; logits are those of the file"
    ]
    assert [*Importer(model, DLRM, data).remarks()] == [
        "of the data, 0.25 of the negative training examples were kept; predictions are corrected "
        "for 1, which the file notes"
    ]


@pytest.mark.parametrize(
    ("changes", "form", "message"),
    [
        ({"model": "wide_deep"}, "dlrm", "is a model 'wide_deep'; what can be converted"),
        pytest.param(
            {"compression": "quotient_remainder", "compress_above": 10},
            "dlrm",
            "are compressed",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            {"normalization": "layer"},
            "torchrec",
            "has the layer bottom.norms.0.bias",
            marks=pytest.mark.thorough,
        ),
        ({"pooling": "mean"}, "dlrm", "bags of C2 are averaged, and the reference adds"),
        ({"interaction": "cat"}, "torchrec", "this model's interaction is cat; give --format=dlrm"),
        pytest.param(
            {"self_interaction": True},
            "torchrec",
            "interaction is dot with self_interaction",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            {"dense_features": 0}, "dlrm", "has no dense features", marks=pytest.mark.thorough
        ),
        pytest.param(
            {"top_mlp": (1,)},
            "torchrec",
            "TorchRec's top has at least 2 layers, got 1",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            {"model": "dcn_v2", "model_options": ("rank=2",)},
            "dlrm",
            "no cross layers; TorchRec ha",
            marks=pytest.mark.thorough,
        ),
        ({"model": "dcn_v2"}, "torchrec", "lacks the layer cross.0.factors.1"),
    ],
)
def test_what_cannot_leave(changes: dict, form: Format, message: str):
    model = InMemory.of(dataclasses.replace(DLRM, **changes))
    with pytest.raises(UserError, match=message):
        Exporter(OwnModel.of(model), form)


def test_remarks(tmp_path: Path):
    """Shared tables are written for each column, and come back as one."""
    shared = dataclasses.replace(
        DLRM,
        table_rows=(30, 30, 12),
        shared_tables=("C2=C1",),
        pooling="mean",
        compute_dtype="bfloat16",
    )
    path = tmp_path / "x.safetensors"
    exporter = Exporter(OwnModel.of(InMemory.of(shared)), "torchrec")
    exporter.write(path)
    assert [*exporter.remarks()] == [
        "columns of the first top layer are in the order of TorchRec's pairs",
        "table C1 is written 2 times: for C1, C2",
        "give pooling=PoolingType.MEAN to the EmbeddingBagConfigs of C2, C3",
        "predictions here are computed in bfloat16: PyTorch's differ, unless it does so, too",
    ]
    back = importer(path, shared)
    for name, expected in exporter.model.tables():
        assert np.array_equal(back.table(name), expected)
    tensors = load_file(path)
    tensors[TABLE.format("t_C2")] += 1
    save_file(tensors, path, {"tables": json.dumps(["t_C1", "t_C2", "t_C3"])})
    with pytest.raises(UserError, match=r"columns of the data share the table C1, but .* differ"):
        importer(path, shared).table("C1")

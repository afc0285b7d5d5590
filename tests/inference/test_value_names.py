"""Names of features and values for people."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from dlrm_jax.config import Config
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.inference.value_names import ValueNames

DENSE = ("price", "stock", "age", "plain", "one")
TRANSFORMS = {
    "price": "standardize",
    "stock": "log_standardize",
    "plain": "none",
    "one": "standardize",
}


def test_a_range_is_as_in_the_log_by_column(tmp_path: Path):
    numbers = {name: list(range(i + 1, i + 21)) for i, name in enumerate(DENSE[:-1])}
    log = pl.DataFrame({"y": [0, 1] * 10, "shop": ["a"] * 20, **numbers, "one": [19.95] * 20})
    log.write_parquet(tmp_path / "log.parquet")
    schema = Schema("y", ("shop",), DENSE, dense_transform=TRANSFORMS)
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(schema, split="none"))
    dense = load_directory(tmp_path / "out").train.days[0].dense
    config = Config(table_rows=(3,), features=("shop",), dense_features=len(DENSE))
    names = ValueNames(config, tmp_path / "out")
    for i, name in enumerate(DENSE):
        found = names.range_of(name, float(dense[:, i].min()), float(dense[:, i].max()))
        expected = "19.95" if name == "one" else f"{i + 1} to {i + 20}"
        assert found == expected, name
    unnamed = ValueNames(config, None)
    assert unnamed.dense[1] == "dense 2"
    assert unnamed.range_of("dense 2", 0.5, 1.25) == "0.5 to 1.25"

"""A manifest is what was written, or one clear error."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from pathlib import Path
from typing import Any

import pytest

from dlrm_jax.artifact.manifest import MANIFEST, Manifest, is_artifact
from dlrm_jax.artifact.notes import (
    FeatureNote,
    FileNote,
    LayerNote,
    LookupNote,
    ProgramNote,
    TableNote,
)
from dlrm_jax.artifact.signed_text import signed_text
from dlrm_jax.errors import DamagedArtifactError

EXAMPLE = Manifest(
    name="ä/b",
    step=3,
    made_by={"jax": "0.10.1"},
    data="fingerprint",
    dense_features=2,
    features=(FeatureNote("a", 7, 1), FeatureNote("b", 9, 3)),
    labels=("clicked", "bought"),
    shift=-0.5,
    tables=(TableNote("a", 7, 4, "int8", "tables/a.rows"), TableNote("b", 3, 4, "int4", "b.rows")),
    lookups=(
        LookupNote("a", "a", "a", "sum", (0, 1)),
        LookupNote("b.quotient", "b", "b", "none", (1, 4), {"floor_divide": 4}),
    ),
    layers=(LayerNote("top", (), "float32", "layers/top.npy"),),
    programs=(ProgramNote(None, "programs/any"), ProgramNote(16, "programs/16")),
    files={
        name: FileNote(8, "ab")
        for name in ("tables/a.rows", "b.rows", "layers/top.npy", "programs/any", "programs/16")
    },
    metrics={"test": {"trained": {"auc": 0.75}, "exported": {"auc": None}}},
)


def test_round_trip(tmp_path: Path):
    assert not is_artifact(tmp_path)
    EXAMPLE.write(tmp_path)
    assert is_artifact(tmp_path)
    assert Manifest.read(tmp_path) == EXAMPLE
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == 1


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("step", -1, r"Expected `int` >= 0 - at `\$\.step`"),
        ("shift", "0", r"Expected `float`, got `str` - at `\$\.shift`"),
        ("programs", [], r"length >= 1 - at `\$\.programs`"),
        ("tables.0.row_format", "int2", r"Invalid enum value 'int2' - at `\$\.tables\[0\]\.row_f"),
        ("tables.1.name", "a", "table 'a' is there twice"),
        ("tables.1.name", "c", "lookup 'b.quotient': no table 'b'"),
        ("lookups.0.columns", [0, 2], r"lookup 'a': columns \[0, 2\] .* don't fit feature 'a'"),
        ("lookups.0.feature", "c", "don't fit feature 'c'"),
        ("lookups.1.id_map.floor_divide", 0, r"Expected `int` >= 1"),
        ("lookups.1.id_map.remainder", 2, "don't fit feature 'b'"),
        ("files", {}, "files: 'tables/a.rows' isn't among them"),
        *(
            (place, 2**31, r"Expected `int` <= 2147483647")
            for place in (
                "features.0.rows",
                "features.0.max_ids",
                "tables.0.rows",
                "tables.0.dim",
                "dense_features",
                "lookups.0.columns.1",
                "lookups.1.id_map.floor_divide",
                "programs.1.batch_size",
            )
        ),
        ("step", 2**63, "Expected `int`"),
        ("features.0.rows", 8, "'a': ids of feature 'a' need 8 rows, table 'a' has 7"),
        ("features.1.rows", 13, "'b.quotient': ids of feature 'b' need 4 rows, table 'b' has 3"),
        ("lookups.1.id_map", {"remainder": 4}, "ids of feature 'b' need 4 rows, table 'b' has 3"),
    ],
)
def test_a_damaged_field_is_named(place: str, value: Any, message: str, tmp_path: Path):
    content = json.loads(json.dumps({"format": 1, **dataclasses.asdict(EXAMPLE)}))
    *way, last = [int(x) if x.isdecimal() else x for x in place.split(".")]
    functools.reduce(operator.getitem, way, content)[last] = value
    (tmp_path / MANIFEST).write_text(signed_text(content))
    with pytest.raises(DamagedArtifactError, match=rf"damaged: manifest\.json: .*{message}"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 0}', '{"format": "1"}', "[" * 10**5, "\xff"]
)
def test_what_is_no_manifest(text: str, tmp_path: Path):
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(DamagedArtifactError, match=r"manifest\.json: "):
        Manifest.read(tmp_path)


def test_a_name_is_covered_by_the_checksum(tmp_path: Path):
    EXAMPLE.write(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace("clicked", "Clicked"))
    with pytest.raises(DamagedArtifactError, match="its bytes aren't those that were written"):
        Manifest.read(tmp_path)


def test_what_a_file_says_is_cut_in_messages(tmp_path: Path):
    content = json.loads(json.dumps({"format": 1, **dataclasses.asdict(EXAMPLE)}))
    content["lookups"][0]["table"] = "n" * 10**5
    (tmp_path / MANIFEST).write_text(signed_text(content))
    with pytest.raises(DamagedArtifactError, match=r"no table 'nnn.*n…; copy it") as raised:
        Manifest.read(tmp_path)
    assert len(str(raised.value)) < 1000

from __future__ import annotations

import dataclasses

import pytest
from stream_log import SCHEMA

from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.settings import fingerprint, for_schema

CONFIG = Config(table_rows=(100,))


def test_the_schema_decides_tables_and_features():
    schema = dataclasses.replace(SCHEMA, shared={"item": "user"})
    config = for_schema(CONFIG, schema)
    assert config.features == ("user", "item", "tags")
    assert config.table_rows == (100, 100, 100)
    assert config.bag_lengths == (1, 1, 2)
    assert config.shared_tables == ("item=user",)
    assert for_schema(config, schema) == config
    assert config.dense_features == 1
    several = Schema(("click", "buy"), ("user",))
    mmoe = dataclasses.replace(CONFIG, model="mmoe")
    assert for_schema(mmoe, several).labels == ("click", "buy")


@pytest.mark.parametrize(
    ("changes", "schema", "message"),
    [
        ({"table_rows": (1, 2)}, SCHEMA, "one for each of the 3 categorical columns"),
        ({"loss": "listwise:user"}, SCHEMA, "loss: listwise:user compares the examples of a user"),
        ({"shared_tables": ("item=user",)}, SCHEMA, "name them as shared in the schema"),
        ({"pipelined": True}, SCHEMA, "pipelined: no effect with a stream"),
        ({"patience": 2}, SCHEMA, "patience: it needs examples for validation"),
        ({}, CRITEO, "layout: expected named"),
        ({}, dataclasses.replace(SCHEMA, bins={"user": 3}), "bins: user is to be cut"),
        ({}, dataclasses.replace(SCHEMA, separator=";"), "separator and header are of CSV"),
        (
            {},
            dataclasses.replace(SCHEMA, dense_transform="standardize"),
            "price is to be standardized",
        ),
        (
            {},
            Schema(("a", "b"), ("user",)),
            "model: dlrm has one logit.* alone: leave all but a out of the schema's label$",
        ),
    ],
)
def test_what_a_stream_doesnt_have_is_refused(changes, schema: Schema, message: str):
    with pytest.raises(UserError, match=message):
        for_schema(dataclasses.replace(CONFIG, **changes), schema)


def test_the_fingerprint_is_that_of_what_the_model_reads():
    other = dataclasses.replace(SCHEMA, groups=(), timestamp=None)
    assert fingerprint(other) == fingerprint(SCHEMA)
    assert fingerprint(dataclasses.replace(SCHEMA, weight=None)) != fingerprint(SCHEMA)
    # Checkpoints have it, so it stays as it was in the first version.
    assert fingerprint(Schema("y", ("a",), ("x",))) == "b1ec702ed243f97f3408bd6a7031a26e"

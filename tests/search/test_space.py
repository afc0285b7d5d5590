"""The grammar of spaces, and the configs that they give."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.presets import preset
from dlrm_jax.search.corners import valid_corners
from dlrm_jax.search.grammar import parse_space
from dlrm_jax.search.space import Dimension, described

BASE = preset("small")


def test_ranges_and_choices():
    space = parse_space(
        "learning_rate=0.001..0.1:log, batch_size = 64..128,optimizer=adam|sgd,"
        "top_mlp=64,1|128,64,1,self_interaction=true|false,model_options.layers=1..3"
    )
    assert space.dimensions == (
        Dimension("learning_rate", (), 0.001, 0.1, True),
        Dimension("batch_size", (), 64, 128),
        Dimension("optimizer", ("adam", "sgd")),
        Dimension("top_mlp", ("64,1", "128,64,1")),
        Dimension("self_interaction", ("true", "false")),
        Dimension("model_options.layers", (), 1, 3),
    )
    assert space.size is None
    assert parse_space("batch_size=64..128,optimizer=adam|sgd").size == 130


def test_a_config():
    space = parse_space(
        "learning_rate=0.01..1,top_mlp=8,1|1,self_interaction=true|false,model_options.rank=1|2"
    )
    base = dataclasses.replace(BASE, model="dcn_v2", model_options=("layers=2", "rank=9"))
    values = {"learning_rate": 0.5, "top_mlp": "8,1", "self_interaction": "true"}
    config = space.config(base, {**values, "model_options.rank": "2"})
    assert config == dataclasses.replace(
        base,
        learning_rate=0.5,
        top_mlp=(8, 1),
        self_interaction=True,
        model_options=("layers=2", "rank=2"),
    )


def test_the_bottom_mlp_of_dots_ends_in_the_width_of_the_rows():
    space = parse_space("embedding_dim=8|32,interaction=dot|cat")
    assert space.follows(BASE)
    config = space.config(BASE, {"embedding_dim": "32", "interaction": "dot"})
    assert config.bottom_mlp == (64, 32)
    config = space.config(BASE, {"embedding_dim": "32", "interaction": "cat"})
    assert config.bottom_mlp == (64, 16)
    assert not parse_space("embedding_dim=8|32,bottom_mlp=8|32").follows(BASE)


def test_values_drawn_are_within():
    space = parse_space("learning_rate=0.001..0.1:log,eps=0.5..1.0,batch_size=2..4,loss=bce|mse")
    rng = random.Random(0)
    drawn = [space.draw(rng) for _ in range(200)]
    assert {each["batch_size"] for each in drawn} == {2, 3, 4}
    assert {each["loss"] for each in drawn} == {"bce", "mse"}
    rates = [float(each["learning_rate"]) for each in drawn]
    assert 0.001 <= min(rates) < sorted(rates)[100] < 0.02 < max(rates) <= 0.1
    assert described({"learning_rate": 0.0123456, "batch_size": 3}) == (
        "learning_rate=0.01235, batch_size=3"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat=0.1..1", "there is no setting 'learning_rat'; did you mean learning_rate.*"),
        ("learning_rate", r"expected NAME=LOW..HIGH or NAME=VALUE\|VALUE, got 'learning_rate'.*"),
        ("learning_rate=", r"expected NAME=LOW..HIGH .*, got 'learning_rate='; such as --space=.*"),
        ("interaction=dot|cat,", r"interaction: expected one of dot, cat, got 'cat,'"),
        ("eps=1|2,eps=1|3", "eps is there twice"),
        ("learning_rate=0.1..x", "learning_rate: expected numbers, LOW..HIGH .*, got '0.1..x'"),
        ("batch_size=1..2.5", "batch_size: expected integers, LOW..HIGH .*, got '1..2.5'"),
        ("batch_size=9..9", "batch_size: expected the lower end first, got '9..9'"),
        ("eps=0..1:log", "eps: a logarithm needs an end above 0, got '0..1:log'"),
        ("eps=0..1:lin", "eps: expected LOW..HIGH or LOW..HIGH:log, .*, got '0..1:lin'"),
        ("loss=a..b", r"loss: a range is for numbers, got 'a..b'; give its values, .* loss=A\|B"),
        ("batch_size=8", r"batch_size: expected at least two values, .*, got '8'; a single .*"),
        ("batch_size=8|8", "batch_size: 8 is there twice"),
        ("batch_size=0|8", "batch_size: expected at least 1, got 0"),
        ("batch_size=8|x", "batch_size: expected an integer, got 'x'"),
        ("top_mlp=8,x|1", "top_mlp: expected numbers with commas, got '8,x'"),
        ("self_interaction=yes|no", "self_interaction: expected true or false, got 'yes'"),
        ("eps=0..inf", "eps: expected a finite float32, got inf"),
        ("seed=1|2", "seed isn't to be searched: all trials have the same one"),
        ("shared_tables=C2=C1|C3=C1", "shared_tables isn't to be searched: all trials have .*"),
        ("examples=1..2", "examples isn't to be searched: all trials have the same data"),
        ("labels=a|b", "labels isn't to be searched: all trials train the same labels, .*"),
        ("kernels=jax|native", "kernels isn't to be searched: it doesn't change what is learned"),
        ("model_options=a=1|a=2", "model_options isn't to be searched: one option is searched, .*"),
        ("options.layers=1|2", "expected the name of a setting, or model_options.NAME, got .*"),
    ],
)
def test_what_is_no_space(text: str, message: str):
    with pytest.raises(UserError) as raised:
        parse_space(text)
    assert re.fullmatch(f"space: {message}", str(raised.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer=adam|adamm", "optimizer: .*'adamm'"),
        ("model=dlrm|dcm", "model: expected one of .*got 'dcm'"),
        (
            "model_options.rank=1|2",
            "space: model_options.rank: expected an option of the model: .*",
        ),
        ("collisions=2|4", "space: collisions has no effect without --compression=quotient_.*"),
        (
            "top_mlp=2|3",
            "space: no combination is valid; top_mlp=2: top_mlp: expected it to .*",
        ),
    ],
)
def test_what_no_trial_would_read(text: str, message: str):
    with pytest.raises(UserError) as raised:
        valid_corners(parse_space(text), BASE, make_mesh("1x1"))
    assert re.fullmatch(message, str(raised.value))


def test_a_target_that_no_trial_can_have():
    base = dataclasses.replace(BASE, target_auc=2.0)
    with pytest.raises(UserError, match=r"^target_auc: expected at most 1, got 2\.0$"):
        valid_corners(parse_space("learning_rate=0.1..1:log"), base, make_mesh("1x1"))


def test_corners_are_valid():
    space = parse_space("compression=none|quotient_remainder,collisions=2|4,batch_size=15|16")
    configs = valid_corners(space, BASE, make_mesh("2x4"))
    assert {each.batch_size for each in configs} == {16}
    assert len(configs) == 4

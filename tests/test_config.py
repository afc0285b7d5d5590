import dataclasses
import inspect
import math
from typing import Any, Literal, get_args, get_origin

import pytest

from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.data.multi_hot import MLPERF_ROWS, MLPERF_SIZES
from dlrm_jax.errors import UserError
from dlrm_jax.presets import PRESETS, preset

FIELDS = [field.name for field in dataclasses.fields(Config)]
AT_LEAST_ONE = [
    "table_rows", "bag_lengths", "embedding_dim", "bottom_mlp", "top_mlp",
    "accumulation_steps", "batch_size", "evaluation_batch_size", "epochs", "keep_checkpoints",
    "examples", "min_count", "collisions", "plateau_patience",
]  # fmt: skip
AT_LEAST_ZERO = [
    "class_weights", "eps", "warmup_steps", "decay_start", "decay_steps", "clip_norm", "steps",
    "eval_every", "checkpoint_every", "check_copies_every", "target_auc", "seed", "zipf_exponent",
    "shuffle_window", "dense_features", "compress_above", "temperature", "patience",
    "plateau_factor", "validation_examples", "table_l2", "dense_l2", "dropout", "unseen_rate",
]  # fmt: skip


def refused(text, **changes):
    """The message of the error that these fields raise, which names the text as well.

    Made without the import hook, which users don't have and which would stop wrong types first.
    """
    plain = inspect.unwrap(Config.__init__)
    with pytest.raises(UserError) as raised:
        plain(object.__new__(Config), **changes)
    assert str(raised.value).startswith(f"{next(iter(changes))}:")
    assert text in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_type_names_field_and_value(name):
    kind = FIELD_TYPES[name]
    if get_origin(kind) is Literal:
        message = refused("'nonsense'", **{name: "nonsense"})
        assert all(choice in message for choice in get_args(kind))
    elif get_origin(kind) is tuple:
        refused(repr([1]), **{name: [1]})
        refused("None", **{name: (None,)})
    elif kind is bool:
        refused("1", **{name: 1})
    else:
        refused("None", **{name: None})
        if kind is int:
            refused("1.5", **{name: 1.5})
        if kind in (int, float):
            refused("True", **{name: True})
            refused("'3'", **{name: "3"})


@pytest.mark.parametrize(
    ("name", "low"), [*((n, 1) for n in AT_LEAST_ONE), *((n, 0) for n in AT_LEAST_ZERO)]
)
def test_a_number_too_low_names_field_and_value(name, low):
    if get_origin(FIELD_TYPES[name]) is tuple:
        value = (*getattr(Config(), name)[:-1], low - 1)
    else:
        value = low - 1
    message = refused(f"got {low - 1}", **{name: value})
    assert f"at least {low}" in message


@pytest.mark.parametrize("name", [n for n in FIELDS if FIELD_TYPES[n] is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39])
def test_only_finite_numbers_pass(name, value):
    refused(f"expected a finite float32, got {value}", **{name: value})


@pytest.mark.parametrize("name", ["warmup_steps", "decay_start", "decay_steps"])
def test_what_becomes_an_int32_has_its_limit(name):
    highest: dict[str, Any] = {name: 2**31 - 1}
    Config(**highest)
    refused("expected at most 2147483647, got 2147483648", **{name: 2**31})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"table_rows": ()}, "expected at least one number, got none"),
        ({"bottom_mlp": ()}, "embedding_dim = 16, got ()"),
        ({"top_mlp": ()}, "expected it to end in 1, the logit, got ()"),
        ({"pooling": "learned", "compression": "mixed_dimensions"}, "got compression=mixed"),
        ({"learning_rate": 0.0}, "expected a positive number, got 0.0"),
        ({"learning_rate": -0.1}, "expected a positive number, got -0.1"),
        ({"class_weights": (1.0,)}, "not both 0, got (1.0,)"),
        ({"class_weights": (0.0, 0.0)}, "not both 0, got (0.0, 0.0)"),
        ({"class_weights": (1.0, float("nan"))}, "expected a finite float32, got nan"),
        ({"class_weights": (1.0, float("inf"))}, "expected a finite float32, got inf"),
        ({"class_weights": (-1.0, 1.0)}, "expected at least 0, got -1.0"),
        ({"bag_lengths": (1, 2, 3)}, "one for each of the 26 tables, got 3"),
        ({"bottom_mlp": (64, 32)}, "embedding_dim = 16, got (64, 32)"),
        ({"top_mlp": (64, 2)}, "expected it to end in 1, the logit, got (64, 2)"),
        ({"batch_size": 10, "accumulation_steps": 4}, "10 is not divisible by accumulation_"),
        ({"plateau_factor": 1.0}, "expected a number below 1, got 1.0"),
        ({"plateau_factor": 0.5, "eval_every": 0}, "and eval_every=0 has none"),
        ({"patience": 3, "eval_every": 0}, "and eval_every=0 has none"),
        ({"patience": 2, "plateau_factor": 0.5}, "more than plateau_patience = 2, got 2"),
    ],
)
def test_contradictions_name_field_and_value(changes, text):
    refused(text, **changes)


def test_whole_numbers_pass_for_floats_and_cat_takes_any_width():
    # Without the import hook, to which 1 is no float.
    inspect.unwrap(Config.__init__)(object.__new__(Config), learning_rate=1, class_weights=(1, 2))
    assert Config(interaction="cat", bottom_mlp=(64, 32)).bottom_mlp == (64, 32)


def test_per_table_settings():
    config = Config(placements=("C3=row_wise", "C26=table_wise:1"), table_optimizers=("C1=sgd=2",))
    assert config.per_table("placements") == {"C3": "row_wise", "C26": "table_wise:1"}
    assert config.per_table("table_optimizers") == {"C1": "sgd=2"}
    assert Config().per_table("placements") == {}
    for item in ("C27=row_wise", "row_wise", "C3", "c3=row_wise", ""):
        bad = Config(placements=("C1=replicated", item))
        with pytest.raises(UserError, match=r"placements: expected TABLE=VALUE .* C1\.\.C26") as e:
            bad.per_table("placements")
        assert repr(item) in str(e.value)


def test_settings_name_tables_as_their_features():
    named = dataclasses.replace(Config(table_rows=(5, 6, 7)), features=("item", "a=b", "a"))
    assert named.table_names == ("item", "a=b", "a")
    given = dataclasses.replace(named, placements=("a=b=row_wise", "a=replicated"))
    assert given.per_table("placements") == {"a=b": "row_wise", "a": "replicated"}
    for item, end in (("C1=row_wise", "; C1 is called item now, as in the log"), ("C4=x", "")):
        bad = dataclasses.replace(named, placements=(item,))
        with pytest.raises(
            UserError, match=rf"'{item}' names no table; there are item, a=b, a{end}$"
        ):
            bad.per_table("placements")
    for field, value in (("placements", "VALUE"), ("dynamic_ids", "ROWS")):
        bad = dataclasses.replace(named, **{field: ("item",)})
        with pytest.raises(UserError, match=f"^{field}: expected item={value}, got 'item' alone"):
            bad.per_table(field)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a",), "^features: expected one name for each of the 2 tables, got 1"),
        (("a", "a"), "^features: 'a' is there twice"),
        (("a", "b\n"), "^features: expected names of printable characters, got 'b\\\\n'"),
        (("", "a"), "printable"),
    ],
)
def test_names_of_features(names: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        Config(table_rows=(5, 6), features=names)


def test_labels_are_named_once():
    with pytest.raises(UserError, match=r"^labels: 'a' is there twice; name each once$"):
        Config(labels=("a", "a"))


def test_one_bag_length_is_for_every_table():
    assert Config(table_rows=(5, 6), bag_lengths=(3,)).table_bag_lengths == (3, 3)
    assert Config(table_rows=(5, 6), bag_lengths=(3, 1)).table_bag_lengths == (3, 1)
    assert Config(table_rows=(5, 6)).table_names == ("C1", "C2")


@pytest.mark.parametrize(
    ("name", "rows", "dim", "bottom", "top", "batch", "rate"),
    [
        ("kaggle", 33_762_577, 16, (512, 256, 64, 16), (512, 256, 1), 128, 0.1),
        ("terabyte", 49_126_297, 64, (512, 256, 64), (512, 512, 256, 1), 2048, 0.1),
        ("mlperf_v1", 187_767_399, 128, (512, 256, 128), (1024, 1024, 512, 256, 1), 2048, 1.0),
        ("profile", 8_000_000, 64, (512, 64), (1024, 1024, 1024, 1), 2048, 0.1),
    ],
)
def test_presets_are_the_published_configurations(name, rows, dim, bottom, top, batch, rate):
    config = preset(name)
    assert sum(config.table_rows) == rows
    assert (config.embedding_dim, config.bottom_mlp, config.top_mlp) == (dim, bottom, top)
    assert (config.optimizer, config.batch_size, config.learning_rate) == ("sgd", batch, rate)
    if name == "profile":
        assert (config.dense_features, len(config.table_rows), config.bag_lengths) == (
            512,
            8,
            (100,),
        )
    else:
        assert (config.dense_features, len(config.table_rows), config.bag_lengths) == (13, 26, (1,))


def test_mlperf_v2_is_the_published_configuration():
    config = preset("mlperf_v2")
    assert (config.table_rows, config.bag_lengths) == (MLPERF_ROWS, MLPERF_SIZES)
    assert (sum(config.table_rows), sum(config.table_bag_lengths)) == (204_184_588, 214)
    assert (config.embedding_dim, config.bottom_mlp) == (128, (512, 256, 128))
    assert config.top_mlp == (1024, 1024, 512, 256, 1)
    assert (config.optimizer, config.learning_rate, config.eps) == ("rowwise_adagrad", 0.005, 1e-8)
    assert config.batch_size == 65_536
    assert (config.model, config.model_options) == ("dcn_v2", ("layers=3", "rank=512"))


def test_a_plan_leaves_nothing_to_place():
    with pytest.raises(UserError, match=r"placements: .* got C1=replicated and p.json"):
        Config(placements=("C1=replicated",), plan="p.json")
    assert "plan" not in Config(plan="p.json").identity()


def test_an_unknown_preset_names_those_that_there_are():
    with pytest.raises(UserError) as raised:
        preset("criteo")
    assert "'criteo'" in str(raised.value)
    assert all(name in str(raised.value) for name in PRESETS)

"""Flags that nothing would read are refused, not ignored."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.config_flags import with_flags
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.help import help_text
from dlrm_jax.errors import UserError
from dlrm_jax.presets import preset

TRAIN = pytest.mark.parametrize("program", ["dlrm_jax.cli.train"], indirect=True)


def refused(*given: str) -> str:
    """The message that refuses a config's flags."""
    try:
        cli_flags.parse(["program", *given])
        with_flags(preset(FLAGS.preset))
    except UserError as error:
        return str(error)
    return "nothing is refused"


@TRAIN
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--steps=5 --epochs=2", "--epochs has no effect with --steps, which says how many .*"),
        ("--decay_start=5", "--decay_start has no effect without --decay_steps"),
        ("--plateau_patience=5", "--plateau_patience has no effect without --plateau_factor"),
        ("--nostochastic_rounding", "--stochastic_rounding has no effect without --table_dtype.*"),
        ("--compression=mixed_dimensions --compress_above=50000",
         "compression: mixed_dimensions compresses no table, .* largest has 50,000 rows .*"),
        ("--frozen_tables=C2,C3 --table_optimizers=C3=sgd",
         "table_optimizers: C3 is one of frozen_tables, which no optimizer updates; .*"),
        ("--frozen_tables=", "--frozen_tables: expected a value, got an empty one; such as .*"),
        ("--warm_start_names=", "--warm_start_names: expected a value, got an empty one; .*"),
    ],
)  # fmt: skip
def test_of_a_run(program: ModuleType, given: str, message: str):
    del program
    assert re.fullmatch(message, refused(*given.split()))


@TRAIN
def test_what_a_preset_gives_may_be_taken_away(program: ModuleType):
    del program
    given = "--preset=mlperf_v2 --model=dlrm --model_options= --interaction=cat --bottom_mlp="
    cli_flags.parse(["train", *given.split()])
    assert with_flags(preset("mlperf_v2")).model_options == ()


@TRAIN
@pytest.mark.parametrize("name", ["steps", "epochs"])
def test_steps_of_a_run_that_is_evaluated(program: ModuleType, name: str):
    cli_flags.parse(["train", "--eval_only", f"--{name}=3", "--workdir=w"])
    with pytest.raises(UserError, match=f"--{name} has no effect with --eval_only"):
        program.check_flags()


@TRAIN
@pytest.mark.parametrize("given", ["publish_every_seconds=5", "publish_tables=int8"])
def test_settings_of_publications(program: ModuleType, given: str):
    cli_flags.parse(["train", f"--{given}"])
    with pytest.raises(UserError, match=f"--{given.split('=')[0]} has no effect without --publish"):
        program.check_flags()


@TRAIN
def test_copies_of_one_device(program: ModuleType):
    cli_flags.parse(["train", "--mesh=1x1", "--check_copies_every=10"])
    with pytest.raises(UserError, match="--check_copies_every has no effect on a mesh of one dev"):
        program.main()


@pytest.mark.parametrize(
    ("program", "name"),
    [
        *(("dlrm_jax.cli.plan", name) for name in ("loss=mse", "warmup_steps=5")),
        *(("dlrm_jax.cli.compile", name) for name in ("teacher=pairs", "seed=1")),
        *((f"dlrm_jax.cli.{command}", name) for command in ("plan", "compile")
          for name in ("emulate", "best_metric=auc", "examples=9", "target_auc=0.8")),
    ],
    indirect=["program"],
)  # fmt: skip
def test_of_plans(program: ModuleType, name: str):
    assert f"--{name.split('=')[0]} has no effect: " in refused(f"--{name}")
    assert not re.search(rf"^  --(\[no\])?{name.split('=')[0]}\b", help_text(""), re.M)


@pytest.mark.parametrize(
    ("program", "given", "message"),
    [
        ("dlrm_jax.cli.preprocess", "--seed=1 --split=time", "--seed has no effect without "),
        ("dlrm_jax.cli.preprocess", "--split=user", "split: expected user=COLUMN, got 'user'"),
        ("experiments.compare.__main__", "--split=time", "--split has no effect without --data"),
    ],
    indirect=["program"],
)
def test_of_splits(program: ModuleType, given: str, message: str):
    required = ["--input=x", "--output=y"] if "preprocess" in program.__name__ else []
    cli_flags.parse(["program", *required, *given.split()])
    with pytest.raises(UserError, match=message):
        program.main()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--steps=5 --epochs=2", "--epochs has no effect with --steps, which says how many"),
        ("--nostochastic_rounding", "--stochastic_rounding has no effect without --table_dtype"),
        ("--negatives=0 --sampler=frequency", "--sampler has no effect without --negatives"),
        ("--exclude=x", "--exclude has no effect without --data"),
        ("--data=x --users=9", "--users has no effect with --data, which has users and items"),
        ("--data=x --user_columns=y", "--item_columns is missing; such as --item_columns=item_id"),
    ],
)
@pytest.mark.parametrize("program", ["experiments.two_tower.__main__"], indirect=True)
def test_of_two_towers(program: ModuleType, given: str, message: str):
    cli_flags.parse(["program", *given.split()])
    with pytest.raises(UserError, match=message):
        program.main()


@pytest.mark.parametrize(
    ("program", "name"),
    [("dlrm_jax.cli.preprocess", "output"), ("dlrm_jax.cli.predict", "checkpoint")],
    indirect=["program"],
)
def test_help_says_what_is_required(program: ModuleType, name: str):
    text = " ".join(help_text(program.__doc__ or "").split())
    assert re.search(rf" --{name} [^.]*?\.? Required\.", text)


@pytest.mark.parametrize(
    ("program", "name"),
    [("experiments.two_tower.__main__", "recall_at"), ("experiments.compare.__main__", "models")],
    indirect=["program"],
)
def test_lists_of_nothing(program: ModuleType, name: str):
    del program
    with pytest.raises(UserError, match=f"--{name}: expected a value, got an empty one"):
        cli_flags.parse(["program", f"--{name}="])

"""``--help`` of every program, and the errors of wrong command lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags
from main_job import fails, run

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.config_flags import NO_EFFECT
from dlrm_jax.cli.flags import example, own_flags
from dlrm_jax.cli.help import help_text
from dlrm_jax.cli.main import COMMANDS
from dlrm_jax.cli.output_files import check_new, check_writable
from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.errors import UserError
from dlrm_jax.presets import PRESETS

EXPERIMENTS = (
    "movielens", "compare.__main__", "characterize.__main__", "frequency.__main__",
    "two_tower.__main__", "benchmarks.step", "benchmarks.peers.__main__", "benchmarks.loader",
    "benchmarks.roofline_picture", "benchmarks.meshes", "benchmarks.published_runs",
    "benchmarks.scaling", "scaling.__main__",
)  # fmt: skip
PROGRAMS = [f"dlrm_jax.cli.{name}" for name in COMMANDS]
PROGRAMS += [f"experiments.{name}" for name in EXPERIMENTS]


@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_help_lists_every_flag_in_lines_that_fit(program: ModuleType):
    for width in (60, 80, 100):
        text = help_text(program.__doc__ or "", width)
        assert max(map(len, text.splitlines())) <= width
    assert text.startswith((program.__doc__ or "").split()[0])
    assert not re.search(r"^    --", text, re.M), "a command whose rest is a line of its own"
    for flag in own_flags():
        listed = len(re.findall(rf"^  --(?:\[no\])?{flag.name}(?= |$)", text, re.M))
        assert listed == (0 if (flag.help or "").startswith(NO_EFFECT) else 1), flag.name
    assert "--verbosity" not in text
    assert "`" not in text


@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_every_flag_has_a_sentence_and_an_example_that_it_takes(program: ModuleType):
    assert own_flags() or program.__name__ == "dlrm_jax.cli.doctor"
    for flag in own_flags():
        text = flag.help or ""
        if text.startswith(NO_EFFECT):
            continue
        assert re.search(r"(^|>: )[A-Z].*\.$", text, re.DOTALL), text
        if flag.boolean or isinstance(flag.parser, flags.EnumParser):
            continue
        value = example(flag)
        assert value, text
        flag.parser.parse(value)


@pytest.mark.parametrize("program", ["dlrm_jax.cli.preprocess"], indirect=True)
def test_a_sentence_that_says_the_default_is_not_contradicted(program: ModuleType):
    joined = " ".join(help_text(program.__doc__ or "", 100).split())
    assert "otherwise days; such as user=user_id:0.1,0.1. --validation" in joined


@pytest.mark.parametrize("program", ["experiments.benchmarks.peers.__main__"], indirect=True)
def test_many_values_are_counted_as_what_they_are(program: ModuleType):
    joined = " ".join(help_text(program.__doc__ or "", 100).split())
    assert re.search(r"--peers Peers of [^.]*; such as jax_dense\. Default: \d+ names\.", joined)


@pytest.mark.parametrize("program", ["dlrm_jax.cli.train"], indirect=True)
def test_the_config_gives_sections_sentences_and_defaults(program: ModuleType):
    text = help_text(program.__doc__ or "", 100)
    titles = re.findall(r"^(\S*):$", text, re.M)
    assert titles == ["Flags", "Tables", "Model", "Optimization", "Run", "Data"]
    joined = " ".join(text.split())
    assert (
        f"--optimizer Optimizer of the tables. One of {', '.join(OPTIMIZERS)}. "
        "Default: rowwise_adagrad; sgd in kaggle, terabyte, mlperf_v1, profile; adam in ctr_x1, "
        "ctr_x1_*." in joined
    )
    for name in FIELD_TYPES:
        sentence = " ".join(Config.__dataclass_fields__[name].metadata["text"].split())
        assert sentence.replace("`", "") in joined
    values = {config.embedding_dim for config in PRESETS.values()}
    line = re.search(r"--embedding_dim .*? Default: (.*?\.) --", joined)
    assert line
    assert {int(number) for number in re.findall(r"\b\d+\b", line[1]) if number not in "12"} >= {
        x for x in values if x > 2
    }


@pytest.mark.parametrize("program", ["dlrm_jax.cli.train"], indirect=True)
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--top_mpl=8,1", r"there is no flag --top_mpl; did you mean --top_mlp.*\? See --help"),
        ("--notensorbord", r"there is no flag --notensorbord; did you mean --notensorboard.*"),
        ("--qqqqqq", r"there is no flag --qqqqqq; see --help"),
        ("--batch_size=x", "--batch_size: expected an integer, got 'x'; such as --batch_size=2048"),
        ("--eps=x", "--eps: expected a number, got 'x'; such as --eps=1e-8"),
        ("--top_mlp=8,x", "--top_mlp: expected integers with commas, got '8,x'; such as .*"),
        ("--interaction=dit", "--interaction: expected one of dot, cat, got 'dit'"),
        ("--eval_only=x", "--eval_only: expected true or false, got 'x'"),
        ("--eps=inf", "--eps: expected a finite number, got inf"),
        ("--class_weights=1,nan", "--class_weights: expected a finite number, got nan"),
        ("--frozen_tables=a,", "--frozen_tables: expected values with commas between them, got .*"),
        ("--workdir=", "--workdir: expected a value, got an empty one; such as --workdir=.*"),
        ("--plan=", "--plan: expected a value, got an empty one; such as --plan=plan.json"),
        ("--processes=0", "--processes: expected an integer of at least 1, got '0'; such as .*=2"),
    ],
)
def test_a_wrong_flag_is_explained(program: ModuleType, argument: str, message: str):
    del program
    with pytest.raises(UserError) as raised:
        cli_flags.parse(["train", argument])
    assert re.fullmatch(message, str(raised.value))


@pytest.mark.parametrize("program", ["dlrm_jax.cli.serve"], indirect=True)
def test_both_limits_of_a_flag_are_named(program: ModuleType):
    del program
    with pytest.raises(UserError, match="--port: expected an integer from 0 to 65535, got '65536'"):
        cli_flags.parse(["serve", "--port=65536"])


@pytest.mark.parametrize("program", ["dlrm_jax.cli.preprocess"], indirect=True)
def test_files_that_a_repeated_flag_would_leave_out_are_an_error(program: ModuleType):
    del program
    with pytest.raises(UserError, match="--input is given 2 times, and only the last one"):
        cli_flags.parse(["preprocess", "--input=a", "--input=b"])


@pytest.mark.parametrize("program", ["dlrm_jax.cli.train"], indirect=True)
@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("top_mlp: expected it to end in 1", "--top_mlp: expected it to end in 1; such as --.*"),
        ("target_auc: expected 0 for data", "--target_auc: expected 0 for data"),
        ("dropout: expected 0 with stca", "--dropout: expected 0 with stca"),
        ("batch_size: expected at most the 9 rows", "--batch_size: expected at most the 9 rows"),
        ("batch_size: 10 is odd", "--batch_size: 10 is odd"),
        ("--mesh: expected DxM", "--mesh: expected DxM"),
        ("validation, row 3: expected", "validation, row 3: expected"),
        ("a field", "a field"),
    ],
)
def test_the_name_of_a_field_becomes_that_of_its_flag(
    program: ModuleType, message: str, named: str
):
    del program
    assert re.fullmatch(named, cli_flags.named_as_flag(message))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="nobody can make a file in /proc")
@pytest.mark.parametrize("program", ["dlrm_jax.cli.compile"], indirect=True)
@pytest.mark.parametrize("check", [check_new, check_writable])
def test_a_directory_that_takes_no_files(program: ModuleType, check: Callable[[str], None]):
    """Before the hours of a compilation; root may write everywhere, says the system."""
    del program
    cli_flags.parse(["compile", "--json=/proc/new/x"])
    expected = "--json: expected a directory that you can write to, got /proc/new/x in /proc"
    with pytest.raises(UserError, match=f"{expected}: .*; give another name"):
        check("json")


@pytest.mark.parametrize("program", ["dlrm_jax.cli.preprocess"], indirect=True)
def test_a_path_with_a_comma(program: ModuleType, tmp_path: Path):
    del program
    given = [tmp_path / "day,0.gz", tmp_path / "day 1.gz"]
    for path in given:
        path.touch()
    cli_flags.parse(["preprocess", f'--input="{given[0]}",{given[1]}'])
    assert cli_flags.paths("input") == given


@pytest.mark.parametrize("program", ["dlrm_jax.cli.preprocess"], indirect=True)
def test_a_path_with_a_comma_and_no_quotes(program: ModuleType, tmp_path: Path):
    del program
    cli_flags.parse(["preprocess", f"--input={tmp_path}/day,0.gz"])
    with pytest.raises(UserError, match=r"no .*/day; a path with a comma is given in double quot"):
        cli_flags.paths("input")


@pytest.mark.parametrize(
    "program", [("-m", "dlrm_jax", "train"), ("-m", "experiments.two_tower")], ids=" ".join
)
def test_help_of_a_process(program: tuple[str, ...]):
    for flag in ("--help", "-h"):
        result = run(flag, program=program, COLUMNS="70")
        assert result.returncode == 0
        assert not result.stderr
        assert max(map(len, result.stdout.splitlines())) <= 70
        assert "--mesh " in result.stdout


def test_commands_are_listed_and_a_misspelled_one_is_recognized():
    listed = run("--help", program=("-m", "dlrm_jax"))
    assert listed.returncode == 0
    for name in COMMANDS:
        assert re.search(f"^  {name} ", listed.stdout, re.M)
    assert run(program=("-m", "dlrm_jax")).stdout == listed.stdout
    wrong = run("trian", program=("-m", "dlrm_jax"))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: there is no command 'trian'; did you mean train?\n")


def test_a_field_out_of_range_names_the_flag():
    fails("--batch_size: expected at least 1, got 0; such as --batch_size=2048", "--batch_size=0")

"""The flag --continue_from: whose config counts, and what is refused before data are read."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.continued import continued_config, told
from dlrm_jax.errors import UserError

PREVIOUS = Path(__file__).parents[1] / "previous"
RUN = PREVIOUS / "run_of_format_3"
TRAIN = pytest.mark.parametrize("program", ["dlrm_jax.cli.train"], indirect=True)


@TRAIN
def test_the_config_is_that_of_the_run_changed_by_flags(program: ModuleType, tmp_path: Path):
    given = f"--continue_from={RUN} --data={PREVIOUS / 'data'} --learning_rate=0.5 --epochs=3"
    cli_flags.parse(["train", *given.split()])
    program.check_flags()
    config = continued_config(tmp_path / "new")
    assert (config.learning_rate, config.steps, config.epochs) == (0.5, 0, 3)
    assert (config.embedding_dim, config.table_rows) == (4, (42, 6, 14))
    assert config.placements == ()
    # The run itself, once it has begun, whatever has become of the other one.
    cli_flags.parse(["train", f"--continue_from={tmp_path}/gone"])
    assert continued_config(RUN).embedding_dim == 4


@TRAIN
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset=small", "--preset has no effect with --continue_from: the checkpoint has the c"),
        (
            "--warm_start=x --warm_start_names=all",
            "--warm_start has no effect with --continue_from",
        ),
        ("--embedding_dim=8", "--embedding_dim: .* was trained with 4, got 8; leave it out"),
        ("--data=", "--continue_from needs --data, which .* --grow made"),
        (f"--data={RUN}", "has no metadata.json; prepare them with .* --grow=.*preprocessing"),
        (f"--continue_from={RUN}/none", "expected the workdir of a run .* there is no .*none"),
        (f"--continue_from={PREVIOUS}", "previous is not a checkpoint: it has no metadata.json"),
        ("--eval_only --workdir=w", "--continue_from has no effect with --eval_only"),
    ],
)
def test_what_is_refused(program: ModuleType, flags: str, message: str, tmp_path: Path):
    defaults = {"--continue_from": str(RUN), "--data": str(PREVIOUS / "data")}
    given = defaults | {name: value for name, _, value in (x.partition("=") for x in flags.split())}
    arguments = [f"{name}={value}" if value else name for name, value in given.items()]
    arguments = [x for x in arguments if x != "--data"]
    cli_flags.parse(["train", *arguments])

    def start() -> None:
        program.check_flags()
        continued_config(tmp_path / "new")

    with pytest.raises(UserError, match=message):
        start()


def test_a_run_without_test_examples_tells_of_validation():
    metrics = {"auc": 0.5, "log_loss": 0.5}
    better = {"auc": 0.6, "log_loss": 0.4}
    found = told({"before": {"validation": metrics}, "validation": better})
    assert found is not None
    assert found.startswith("validation: the update is better than none: auc 0.50000 ->")
    assert told({"test": better}) is None

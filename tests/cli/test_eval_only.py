"""A run that is evaluated has the config of its checkpoint, with flags that may change."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.metadata import read_metadata

WORKDIR = Path(__file__).parents[1] / "previous" / "run_of_format_3"
CHECKPOINT = WORKDIR / "checkpoints" / "00000006"
TRAIN = pytest.mark.parametrize("program", ["dlrm_jax.cli.train"], indirect=True)


def config(
    program: ModuleType, *given: str, workdir: Path = WORKDIR, data: str = "--data=log"
) -> Config:
    cli_flags.parse(["train", "--eval_only", data, f"--workdir={workdir}", *given])
    program.check_flags()
    return program.evaluated(workdir)


@TRAIN
def test_the_checkpoint_has_the_config(program: ModuleType):
    saved = trained_config(CHECKPOINT, read_metadata(CHECKPOINT))
    found = config(
        program, "--evaluation_batch_size=70", "--kernels=jax", f"--batch_size={saved.batch_size}"
    )
    assert found == dataclasses.replace(
        saved, evaluation_batch_size=70, kernels="jax", placements=(), plan=""
    )


@TRAIN
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--embedding_dim=3"], "--embedding_dim: .*00000006 was trained with 4, got 3; leave it"),
        (["--top_mlp=2,1"], r"--top_mlp: .* was trained with \(4, 1\), got \(2, 1\);"),
        (["--preset=kaggle"], "--preset: .* with batch_size 16, and kaggle has 128; leave it out"),
        (["--steps=9"], "--steps has no effect with --eval_only"),
        (["--workdir=none"], "--eval_only: expected the --workdir of a run, there is no none"),
        ([f"--workdir={WORKDIR.parent}"], "--eval_only: there is no checkpoint in .*/checkpoints"),
    ],
)
def test_what_contradicts_it_is_refused(program: ModuleType, given: list[str], message: str):
    workdir = Path(given[0].removeprefix("--workdir=")) if "workdir" in given[0] else WORKDIR
    with pytest.raises(UserError, match=message):
        config(program, *given, workdir=workdir)


@TRAIN
def test_data_are_asked_for(program: ModuleType):
    with pytest.raises(UserError, match="00000006 wasn't trained on what its config generates; gi"):
        config(program, data="--mesh=1x1")


@TRAIN
def test_a_stream_is_evaluated_on_a_log(program: ModuleType, tmp_path: Path):
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoints" / CHECKPOINT.name)
    path = tmp_path / "checkpoints" / CHECKPOINT.name / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stream": {}}))
    command = f"python -m dlrm_jax evaluate --checkpoint={tmp_path} --data=LOG"
    for data in ("--data=log", "--mesh=1x1"):
        with pytest.raises(UserError, match=f"trained on a stream, .*: {re.escape(command)}"):
            config(program, data=data, workdir=tmp_path)


@TRAIN
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "mine:loss"}, r"names mine:loss as its loss\. .* \(--loss=mine:loss\)"),
        (
            {"metrics": ("gauc:C1", "mine:f:max")},
            r"names mine:f:max among its metrics\. .* \(--metrics=gauc:C1,mine:f:max\)",
        ),
    ],
)
@pytest.mark.parametrize("flag", ["--eval_only --workdir={}", "--continue_from={} --workdir=new"])
def test_functions_of_a_checkpoint_that_would_be_imported(
    program: ModuleType, flag: str, change: dict[str, Any], message: str, tmp_path: Path
):
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoints" / CHECKPOINT.name)
    path = tmp_path / "checkpoints" / CHECKPOINT.name / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["config"] |= change
    path.write_text(json.dumps(metadata))
    given = ["train", f"--data={WORKDIR.parent / 'data'}", *flag.format(tmp_path).split()]

    def chosen(*further: str) -> Config:
        cli_flags.parse([*given, *further])
        program.check_flags()
        return program.chosen_config(Path(program.FLAGS.workdir))

    with pytest.raises(UserError, match=message):
        chosen()
    name, value = next(iter(change.items()))
    text = value if isinstance(value, str) else ",".join(value)
    assert getattr(chosen(f"--{name}={text}"), name) == value


@TRAIN
def test_a_damaged_checkpoint_and_one_that_would_import_code(program: ModuleType, tmp_path: Path):
    """Another one has the same config; who may have written it can't run code by it."""
    for step in (6, 7):
        shutil.copytree(CHECKPOINT, tmp_path / "checkpoints" / f"{step:08d}")
    (tmp_path / "checkpoints" / "00000007" / "metadata.json").write_text("{")
    assert config(program, workdir=tmp_path).embedding_dim == 4
    path = tmp_path / "checkpoints" / "00000006" / "metadata.json"
    path.write_text(re.sub(r'"model": "\w+"', '"model": "mine:Mine"', path.read_text()))
    with pytest.raises(UserError, match=r"names mine:Mine as the class .* \(--model=mine:Mine\)"):
        config(program, workdir=tmp_path)
    (tmp_path / "checkpoints" / "00000006" / "metadata.json").write_text("{")
    with pytest.raises(UserError, match="00000006 is damaged"):
        config(program, workdir=tmp_path)

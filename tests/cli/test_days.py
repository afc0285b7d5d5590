"""The command line of the loop over days."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.errors import UserError

DAYS = pytest.mark.parametrize("program", ["dlrm_jax.cli.days"], indirect=True)


@DAYS
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--workdir=w", "--input is missing; such as --input=day_0.parquet"),
        ("--input={log}", "--workdir is missing; such as --workdir=runs/days"),
        ("--input={log} --workdir=w --patience=3", "--patience has no effect: it needs validation"),
        ("--input={log} --workdir=w --plan=p", "--plan has no effect: the tables grow from day"),
        ("--input={log} --workdir=w --table_rows=3", "--table_rows has no effect with logs: the"),
        ("--input={log},gone --workdir=w", "--input: there is no gone"),
        ("--input={log} --workdir=w --config={config}", "config file .*: table_rows has no effect "
         "with --input: the data decide"),
        ("--input={log} --workdir=w --best_metric=log_loss", "--best_metric has no effect: it nee"),
        ("--input={log} --workdir=w --preset=ctr_x1", "patience: it needs examples for validation"),
        ("--input={log} --workdir=w --metrics=gauc:nope", "metrics: gauc:nope groups by 'nope'"),
        ("--input={log} --workdir=w --loss=pairwise:nope", "loss: pairwise:nope groups by 'nope'"),
    ],
)  # fmt: skip
def test_what_is_refused(
    program: ModuleType,
    flags: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)  # what isn't refused makes its workdir
    log, config = tmp_path / "log.parquet", tmp_path / "config.json"
    log.touch()
    config.write_text('{"table_rows": [3]}')
    cli_flags.parse(["days", *flags.format(log=log, config=config).split()])
    with pytest.raises(UserError, match=message):
        program.main()


@DAYS
@pytest.mark.parametrize("name", ["days.html", "days.svg"])
def test_a_file_of_a_user_stays(program: ModuleType, name: str, tmp_path: Path):
    log, found = tmp_path / "log.parquet", tmp_path / "w" / name
    log.touch()
    found.parent.mkdir()
    found.write_text("mine")
    cli_flags.parse(["days", f"--input={log}", f"--workdir={found.parent}"])
    with pytest.raises(UserError, match=f"{name} exists, and .* move it or rename it"):
        program.main()
    assert list(found.parent.iterdir()) == [found]
    assert found.read_text() == "mine"


@DAYS
def test_names_of_days(program: ModuleType):
    def names(*paths: str) -> list[str]:
        return [log.name for log in program.named([Path(path) for path in paths])]

    assert names("a/day_0.csv.gz", "a/day_1.gz") == ["day_0", "day_1"]
    assert names("monday/log.parquet", "tuesday/log.parquet") == ["monday-log", "tuesday-log"]
    with pytest.raises(UserError, match="two days would be called 'a-log'; give the files other"):
        names("a/log.csv", "a/log.parquet")

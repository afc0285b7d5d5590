"""``dlrm_jax export``, ``verify`` and ``predict`` of what was exported."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.serving.layer_choice import LayerChoice

PREVIOUS = Path(__file__).parents[1] / "previous"
RUN = f"--run={PREVIOUS / 'run_of_format_3'}"


def test_from_a_run_to_predictions(
    command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    artifact, data = tmp_path / "artifact", f"--data={PREVIOUS / 'data'}"
    command("export", RUN, f"--output={artifact}", data, "--tables=int8", "--max_auc_loss=-0.0")
    printed = capsys.readouterr().out
    assert "table  rows  dim  stored as  bytes" in printed
    assert "test, exported" in printed
    assert re.search(r"validation AUC changes by [+-]\d\.\d{6} with all tables as int8\n", printed)
    assert f"artifact run_of_format_3: see {artifact}/manifest.json" in printed
    command("verify", artifact)
    said = capsys.readouterr().out
    assert "note: no native kernels here, so predictions by the artifact's layers weren't" in said
    assert "35 golden rows by the program are equal to the last bit" in said
    with monkeypatch.context() as patched:
        patched.setenv("DLRM_JAX_KERNELS", "jax")
        command("verify", artifact)
    assert "note: native kernels are not used: DLRM_JAX_KERNELS=jax, so" in capsys.readouterr().out
    with pytest.raises(UserError, match="artifact is not a checkpoint: it is an artifact"):
        command("export", f"--run={artifact}", f"--output={tmp_path / 'again'}")
    output = tmp_path / "p.csv"
    command("predict", f"--checkpoint={artifact}", data, f"--output={output}")
    assert "metrics of all days of the directory" in capsys.readouterr().out
    from_arrays = pl.read_csv(output)
    raw = f"--data={PREVIOUS / 'raw.csv'}"
    command("predict", f"--checkpoint={artifact}", raw, f"--output={tmp_path / 'q.csv'}")
    assert pl.read_csv(tmp_path / "q.csv").equals(from_arrays)
    assert "auc" in capsys.readouterr().out
    for flag, message in (
        (f"--output={output}", "--output: .*p.csv exists"),
        (f"--output={tmp_path}/new.csv --model=a:B", "--model: an artifact needs no class, got 'a"),
    ):
        with pytest.raises(UserError, match=message):
            command("predict", f"--checkpoint={artifact}", raw, *flag.split())
    with pytest.raises(UserError, match="--tables: expected a run or a checkpoint, got the artif"):
        command(
            "predict", f"--checkpoint={artifact}", "--tables=C1", f"--tables_output={tmp_path}/t"
        )
    (artifact / "tables" / "C2.rows").write_bytes(b"")
    with pytest.raises(SystemExit, match="1"):
        command("verify", f"--artifact={artifact}")
    assert "error: artifact " in (error := capsys.readouterr().err)
    assert "tables/C2.rows: expected 48 bytes, it has 0" in error


def test_layers_in_int8(
    command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    flags = [f"--data={PREVIOUS / 'data'}", "--layers=int8", "--max_auc_loss=1"]
    command("export", RUN, f"--output={tmp_path / 'a'}", *flags)
    printed = capsys.readouterr().out
    line = r"validation AUC changes by [+-]\d\.\d{6} with these tables and layers in int8\n"
    assert re.search(line, printed)
    assert "the layers are in" not in printed
    choice = LayerChoice("float32", {"int8": 3.0, "bfloat16": 2.0})
    monkeypatch.setattr("dlrm_jax.serving.export.choose_layers", lambda *_: choice)
    command("export", RUN, f"--output={tmp_path / 'b'}", *flags)
    printed = capsys.readouterr().out
    assert "AUC changes by -2.000000 with these tables and layers in bfloat16\n" in printed
    assert "in float32: in int8, they would cost more than --max_auc_loss=1\n" in printed


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("export", "--output=x", "--run is missing; such as --run=runs/kaggle"),
        ("export", "--run=x", "--output is missing; such as --output=kaggle"),
        ("export", "--run=x --output=/", "--output: / exists; remove it, or give another name"),
        ("export", f"{RUN} --output=/nowhere/x --max_auc_loss=0.1",
         "--max_auc_loss: it is measured on validation examples; give --data, too"),
        ("export", f"{RUN} --output=/nowhere/x --name=a/b", "--name: .*, got 'a/b'"),
        ("export", "--run=. --output=/nowhere/x", "is not a checkpoint|has no checkpoint"),
        ("export", f"{RUN} --output=/nowhere/x --cells=3", "--cells has no effect with a click"),
        ("verify", "", "--artifact is missing; such as --artifact=kaggle"),
        ("verify", "/nowhere", "/nowhere is no artifact: cannot read /nowhere/manifest.json"),
    ],
)  # fmt: skip
def test_bad_command_lines(command, name: str, arguments: str, message: str):
    with pytest.raises(UserError, match=message):
        command(name, *arguments.split())

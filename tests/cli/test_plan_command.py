"""Plans for machines that aren't there, as files that the main job takes."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from main_job import ROOT, run

from dlrm_jax.cli.flags import parse
from dlrm_jax.config import Config
from dlrm_jax.console import telling_time
from dlrm_jax.embedding import Plan, automatic_plan
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import MODEL, make_mesh
from dlrm_jax.training.build import make_collection
from dlrm_jax.training.tables import describe

PROGRAM = ("-m", "dlrm_jax", "plan")
CONFIG = Config(table_rows=(50, 3000, 600), embedding_dim=8, bottom_mlp=(8,))


def test_a_plan_is_printed_saved_and_drawn(tmp_path: Path):
    output, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    result = run(
        "--preset=mlperf_v2",
        "--mesh=16x8",
        "--device=a100",
        "--placements=C12=row_wise:2-5",
        f"--output={output}",
        f"--picture={picture}",
        program=PROGRAM,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    plan = Plan.from_json(output.read_text())
    assert plan.shards == 8
    assert [piece.shard for piece in plan.of("C12")] == [2, 3, 4, 5]
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = result.stdout
    assert re.search(r"^C12 +405,282 +128 +row_wise +2-5 ", text, re.M)
    for line in ("tables, MiB", "with padding, MiB", "all-to-all in all", "in all", "limited by:"):
        assert re.search(rf"^{re.escape(line)}", text, re.M), line
    # Tables of 204,184,588 rows, nearly all of them over 128 devices.
    mean = float(re.search(r"^tables, MiB +\S+ +(\S+)", text, re.M)[1].replace(",", ""))  # pyright: ignore
    assert mean == pytest.approx(204_184_588 * 512 / 2**20 / 128, rel=0.05)


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
def test_a_plan_of_prepared_data(program: ModuleType, capsys: pytest.CaptureFixture[str]):
    given = ["plan", "--preset=small", "--mesh=1x2", f"--data={ROOT / 'tests/previous/data'}"]
    parse([*given, "--placements=city=table_wise:1"])
    program.main()
    found = [line.split() for line in capsys.readouterr().out.splitlines()[1:4]]
    assert [row[:3] for row in found] == [
        ["page", "42", "16"], ["city", "6", "16"], ["word", "14", "16"]
    ]  # fmt: skip
    assert found[1][3:5] == ["table_wise", "1"]
    parse([*given, "--shared_tables=city=page"])
    with pytest.raises(UserError, match="each column of city=page has a vocabulary of its own"):
        program.main()
    parse([*given, "--table_rows=3"])
    with pytest.raises(UserError, match="--table_rows has no effect with --data: the data decide"):
        program.main()


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
def test_the_fastest_mesh_of_so_many_devices_is_planned(
    program: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    flags = ["--preset=mlperf_v2", "--devices=8", "--table_rows=3000,40000000,600"]
    parse(["plan", *flags, "--bag_lengths=1", f"--output={tmp_path / 'plan.json'}"])
    program.main()
    lines = capsys.readouterr().out.splitlines()
    end = lines.index("")
    meshes = [re.split("  +", line.strip()) for line in lines[1:end]]
    seconds = [float(mesh[3]) for mesh in meshes]
    assert seconds == sorted(seconds)
    assert 2 <= len(seconds) == len(set(seconds)) <= 3  # one program is shown once
    names = [name for mesh in meshes for name in mesh[0].split(" = ")]
    assert set(names) <= {"1x8", "2x4", "4x2", "8x1"}
    assert lines[end + 1] == f"plan for mesh {names[0]}:"
    shards = int(names[0].split("x")[1])
    assert Plan.from_json((tmp_path / "plan.json").read_text()).shards == shards


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
def test_planning_that_takes_long_says_so(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    search = program._meshes

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.3)
        return search(*arguments)

    quickly = functools.partial(telling_time, first=0.1)
    monkeypatch.setattr(program, "telling_time", quickly)
    monkeypatch.setattr(program, "_meshes", slowly)
    parse([PROGRAM[-1], "--preset=small", "--devices=2"])
    program.main()
    assert re.match(r"planning \d+ tables on 2 devices: \d s so far\n", capsys.readouterr().err)


def test_a_mesh_and_a_number_of_devices_exclude_each_other():
    result = run("--mesh=1x8", "--devices=8", program=PROGRAM)
    assert result.returncode == 2
    assert result.stderr == (
        "error: --mesh has no effect with --devices: the mesh and its plan are searched\n"
    )


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
def test_a_step_on_paper(program: ModuleType, capsys: pytest.CaptureFixture[str]):
    given = ["plan", "--preset=mlperf_v1", "--mesh=2x8", "--batch_size=8192", "--device=a100"]

    def milliseconds(*more: str) -> float:
        parse([*given, "--simulate", *more])
        program.main()
        text = capsys.readouterr().out
        assert re.search(r"^simulated for a100 +from +to +ms$", text, re.M)
        assert re.search(r"^backward: products \* +\S+ +\S+ +\S+$", text, re.M)
        found = re.search(r"^a step of 8,192 samples: (\S+) ms, \S+ samples a second$", text, re.M)
        assert found
        return float(found[1])

    before = milliseconds()
    # Flags stay as they are parsed: each pair shortens the step of the one before it.
    for flags in (("--pipelined", "--in_network"), ("--top_mlp=8,1", "--comm_dtype=bfloat16")):
        after = milliseconds(*flags)
        assert after < before, flags
        before = after


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pipelined"], "--pipelined has no effect without --simulate"),
        (["--compute_dtype=bfloat16"], "--compute_dtype has no effect without --simulate"),
        (["--simulate", "--accumulation_steps=2"],
         "--simulate: expected batches without micro-batches, got accumulation_steps=2; .*"),
        (["--simulate", "--in_network", "--dense_comm_dtype=bfloat16"],
         "--in_network: expected dense gradients in an all-reduce, .* dense_comm_dtype=bfloat16.*"),
        (["--simulate", "--in_network", "--shard_dense_optimizer"],
         "--in_network: .* got shard_dense_optimizer=True .*"),
    ],
)  # fmt: skip
def test_what_no_simulation_reads_is_refused(program: ModuleType, flags: list[str], message: str):
    parse(["plan", "--preset=small", *flags])
    with pytest.raises(UserError, match=message):
        program.main()


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
@pytest.mark.parametrize(
    "mesh", ["--mesh=1x2", pytest.param("--devices=2", marks=pytest.mark.thorough)]
)
def test_a_penalty_of_all_rows_is_planned(
    program: ModuleType, capsys: pytest.CaptureFixture[str], mesh: str
):
    def numbers(rows: str) -> tuple[float, float]:
        """MiB of temporaries and milliseconds of passes through memory."""
        parse(["plan", "--preset=ctr_x1", mesh, f"--table_l2_rows={rows}"])
        program.main()
        text = capsys.readouterr().out
        names = "temporaries, MiB", "passes through memory"
        return tuple(float(_line(name, text).replace(",", "")) for name in names)  # pyright: ignore

    (few, soon), (many, late) = numbers("touched"), numbers("all")
    assert many > 10 * few
    assert late > 3 * soon


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
def test_emulated_devices_share_the_memory_of_a_host(
    program: ModuleType, capsys: pytest.CaptureFixture[str]
):
    tables = ["--table_rows=40000000,50", "--bag_lengths=1", "--optimizer=sgd", "--device=cpu"]
    given = ["plan", "--preset=small", *tables]
    parse([*given, "--mesh=2x4"])  # of 2.4 GiB in each group
    program.main()
    shared = r"^all 8 emulated devices together: (\S+) GiB$"
    found = re.search(shared, capsys.readouterr().out, re.M)
    assert found
    assert 4.7 < float(found[1]) < 5
    parse([*given, "--mesh=8x1"])
    message = r"need at least 2.38 GiB on each of 8 .* The 8 emulated devices share 12 GiB of one"
    with pytest.raises(UserError, match=message):
        program.main()
    parse([*given, "--mesh=8x1", "--memory_gib=3"])
    program.main()
    assert re.search(shared, capsys.readouterr().out, re.M)


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_headings_name_another_dtype_than_that_of_the_simulation(
    program: ModuleType, capsys: pytest.CaptureFixture[str], dtype: str
):
    parse(["plan", "--preset=small", "--mesh=2x2", "--simulate", f"--comm_dtype={dtype}"])
    program.main()
    text = capsys.readouterr().out
    own = r" \(in float32\)" if dtype == "bfloat16" else ""
    for heading in ("received, MiB", "received by each device", "estimated for h100"):
        assert re.search(rf"^{heading}{own}  +\S", text, re.M), heading
    assert re.search(r"^simulated for h100  +from", text, re.M)


def test_memory_that_is_too_small_is_refused():
    result = run("--mesh=1x8", "--memory_gib=4", program=PROGRAM)
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: memory: tables and their optimizer state need at least 12.* GiB on each of 8 "
        r"devices, a device has 4 GiB for them\. .*table C1 \(40,000,000 x 128\).*\n",
        result.stderr,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *(
            ([f"--memory_gib={x}"], f"--memory_gib: expected .* of at least 1e-9, .*, got {x}")
            for x in ("0.0", "1e-300")
        ),
        (
            ["--mesh=1x8", "--batch_size=248", "--accumulation_steps=2"],
            "--batch_size: 248 samples can't be split .* devices of mesh 1x8, in 2 micro-batches",
        ),
        (["--mesh=1x8192"], "expected at most 4,096 devices in --mesh, got 8,192; .*"),
        (["--memory_gib=nan"], "--memory_gib: expected a finite number, got nan"),
        (["--output=."], "--output: . exists; remove it, or give another name"),
        (["--output=f"], "--output: f exists; remove it, or give another name"),
        (
            ["--output=n.png", "--picture=n.png"],
            "--picture: n.png is the file of --output, too; .*",
        ),
        (["--picture=d.png"], "--picture: d.png exists; remove it, or give another name"),
        (["--mesh_picture=d.png"], "--mesh_picture: d.png exists; remove it, or give another name"),
        (["--mesh_picture=p.gif"], "--mesh_picture: expected a file named .png or .svg, got .*"),
        (["--output=f/g/p.json"], "--output: expected a file in a directory, .* f is a file; .*"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_flags_are_refused_before_the_report(flags, message, tmp_path: Path):
    (tmp_path / "d.png").mkdir()
    (tmp_path / "f").touch()
    result = run("--mesh=1x8", *flags, program=PROGRAM, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 2
    assert re.fullmatch(f"error: {message}\n", result.stderr)
    assert not result.stdout


def test_files_are_made_with_their_directories(tmp_path: Path):
    for flag, name in (("output", "p.json"), ("picture", "p.svg"), ("mesh_picture", "p.png")):
        path = tmp_path / flag / name
        result = run("--preset=small", f"--{flag}={path}", program=PROGRAM)
        assert result.returncode == 0, result.stderr[-2000:]
        assert [each.name for each in path.parent.iterdir()] == [name]


def test_a_reader_that_has_enough_ends_it_quietly():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *PROGRAM, "--preset=small"]
    result = subprocess.run(
        command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=200, check=False
    )
    os.close(write)
    assert result.returncode == 128 + signal.SIGPIPE
    assert not result.stderr


def saved(path: Path, tables, shards: int) -> Config:
    plan = automatic_plan(tables, shards, {"C2": f"row_wise:0-{shards - 1}"})
    path.write_text(plan.to_json())
    return dataclasses.replace(CONFIG, plan=str(path))


def test_the_main_job_takes_a_plan_from_a_file(tmp_path: Path):
    config = saved(tmp_path / "p.json", describe(CONFIG).tables, 4)
    collection = make_collection(config, make_mesh("2x4"))
    assert collection.plan == Plan.from_json(Path(config.plan).read_text())
    assert collection.mesh.shape[MODEL] == 4
    path = Path(config.plan)
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as some editors write
    assert make_collection(config, make_mesh("2x4")).plan == collection.plan


def test_a_plan_that_does_not_fit_is_refused_by_file(tmp_path: Path):
    path = tmp_path / "p.json"
    other = saved(path, describe(CONFIG).tables, 2)
    with pytest.raises(UserError, match=r"--plan=.*p.json: the plan is for 2 shards, the mesh has"):
        make_collection(other, make_mesh("2x4"))
    fewer = saved(path, describe(CONFIG).tables[:2], 4)
    with pytest.raises(UserError, match=r"--plan=.*p.json: table C3: its pieces must hold every"):
        make_collection(fewer, make_mesh("2x4"))
    whole = saved(path, describe(CONFIG).tables, 4)
    named = dataclasses.replace(whole, features=("user", "b", "C2"))
    with pytest.raises(UserError, match=r"table\(s\) C1, C3; C1 is called user now, as in the log"):
        make_collection(named, make_mesh("2x4"))
    path.write_text("{")
    with pytest.raises(UserError, match=r"--plan=.*p.json: a plan is JSON"):
        make_collection(fewer, make_mesh("2x4"))
    missing = dataclasses.replace(CONFIG, plan=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"--plan=.*none.json: .*No such file"):
        make_collection(missing, make_mesh("2x4"))


def _line(name: str, text: str) -> str:
    """The first number of a line."""
    found = re.search(rf"^{re.escape(name)} +(\S+)", text, re.M)
    assert found, name
    return found[1]

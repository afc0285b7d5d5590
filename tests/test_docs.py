"""The documentation builds, its links resolve, and what it shows runs and prints what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import main_job
import pytest
from as_users import QUICKLY
from documents import PAGES, ROOT, anchors, blocks, commands, flags, links, program, prose

from dlrm_jax.training.metrics import METRICS
from examples import own_log


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(arguments: list[str], text: str | None = None) -> str:
    """What a program prints."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "XLA_FLAGS": QUICKLY},
        input=text,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def forked(program: tuple[str, ...], directory: Path) -> str:
    """What a program prints that runs in a directory."""
    result = main_job.run(
        program=program, cwd=directory, PYTHONPATH=str(ROOT), TMPDIR=str(directory)
    )
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def run_script(code: str, directory: Path) -> str:
    """What code prints; its warnings are errors."""
    script = directory / "page.py"  # a file, so that a traceback shows its lines
    script.write_text(code)
    strict = f"""
import runpy, warnings
warnings.simplefilter("error")
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    return forked(("-c", strict), directory)


# -- The site, its links ---------------------------------------------------------------


@pytest.mark.thorough
def test_site(tmp_path: Path):
    config = str(ROOT / "mkdocs.yml")
    site = tmp_path / "site"
    run(["-m", "mkdocs", "build", "--strict", "-q", "-f", config, "-d", str(site)])
    for page in sorted((ROOT / "docs").rglob("*.md")):
        relative = page.relative_to(ROOT / "docs").with_suffix("")
        folder = relative.parent if relative.name == "index" else relative
        html = (site / folder / "index.html").read_text()
        assert not re.search(r'(?:src|<link[^>]+href)="https?://', html), "loads from elsewhere"
    reference = (site / "reference" / "embedding" / "index.html").read_text()
    assert "send_cotangents" in reference
    assert ":::" not in reference


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links(path: Path):
    for target in links(path.read_text()):
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        assert found.exists(), f"{target} in {name_of(path)}"
        # Reference pages get theirs from docstrings; the strict build checks these.
        if anchor and "reference" not in found.parts:
            assert anchor in anchors(found), f"{target} in {name_of(path)}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_are_named_exist(path: Path):
    text = path.read_text()
    named = re.findall(r"`((?:dlrm_jax|experiments|tests|examples|docs)/[\w./*-]+)`", text)
    for name in [*named, *re.findall(r"tests/[\w/]+\.py", text)]:
        assert list(ROOT.glob(name.rstrip("/"))), f"{name} in {name_of(path)}"


def test_the_way_of_a_step_is_as_described():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (table,) = re.findall(
        r"^\| what happens \| where \|\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE
    )
    rows = [row.split(" | ")[-1] for row in table.splitlines()[1:]]
    assert len(rows) > 10
    for row in rows:
        paths = [ROOT / "dlrm_jax" / path for path in re.findall(r"`([\w/]+\.py)`", row)]
        source = "".join(path.read_text() for path in paths)
        for name in re.findall(r"`(\w+)`", row):
            assert f"def {name}(" in source, f"{name}: {row}"


def test_pages_are_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages == listed


def test_no_traces_of_a_machine():
    for path in PAGES:
        assert not re.search(r"/work/|/root/|/tmp/bash", path.read_text()), name_of(path)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# -- What is shown runs ----------------------------------------------------------------

PROGRAMS = [path for path in PAGES if program(path.read_text())[1]]


# By default the shortest.
OFTEN = ("README.md", "docs/models.md")


@pytest.mark.parametrize(
    "path",
    [x if name_of(x) in OFTEN else pytest.param(x, marks=pytest.mark.thorough) for x in PROGRAMS],
    ids=name_of,
)
def test_programs(path: Path, tmp_path: Path):
    files, code, promised = program(path.read_text())
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    printed = run_script(code, tmp_path)
    assert promised, "a page says what its program prints"
    # On a busy machine, training says how far it is.
    lines = [x.rstrip() for x in printed.splitlines() if not re.match(r"step \d+/\d+ ", x)]
    assert lines == promised


def test_there_are_programs():
    assert {"README.md", "docs/your-model.md", "docs/sharding.md"} <= set(map(name_of, PROGRAMS))


@pytest.mark.thorough
def test_a_model_is_one_class(tmp_path: Path):
    files, _, _ = program((ROOT / "docs" / "models.md").read_text())
    (tmp_path / "mine.py").write_text(files["mine.py"])
    (command,) = (
        arguments
        for module, arguments in commands((ROOT / "docs" / "models.md").read_text())
        if module == "dlrm_jax train" and "--model=mine:Products" in arguments
    )
    small = ["--mesh=1x1", "--preset=comparison", "--examples=10000", f"--workdir={tmp_path}/run"]
    assert "C1.weight" in forked(("-m", "dlrm_jax", "train", *command, *small), tmp_path)


def test_orbax_alone_reads_tables():
    files, _, _ = program((ROOT / "docs" / "checkpoints.md").read_text())
    found = ROOT / "tests" / "previous" / "run_of_format_3" / "checkpoints" / "00000006"
    code = files["read_table.py"].replace("runs/log/checkpoints/00001000", str(found))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["arrays"]["C1"]["table"].shape == names["specs"]["C1"]["table"].shape


EXAMPLES = {
    "own_model_nnx": r"accuracy 0\.9\d",
    "own_model_linen": r"accuracy 0\.9\d",
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["own_model_nnx", "own_model_linen"])
def test_examples(name: str, tmp_path: Path):
    assert re.search(EXAMPLES[name], forked(("-m", f"examples.{name}"), tmp_path))


@pytest.mark.thorough
def test_own_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: forked(tuple(command[1:]), tmp_path)
    )
    own_log.main()
    assert re.search(r"test AUC 0\.8\d", capsys.readouterr().out)


@pytest.mark.thorough
def test_notebook(tmp_path: Path):
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    cells = ["".join(x["source"]) for x in notebook["cells"] if x["cell_type"] == "code"]
    assert re.search(r"0\.\d+", run_script("\n".join(cells), tmp_path))


def test_every_example_is_tested():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {"clicks", "own_log", *EXAMPLES}


# -- Commands parse --------------------------------------------------------------------

# Flags of other programs that pages name.
FOREIGN = {
    "accelerator_rows", "completions", "extra", "gpus", "help", "kill", "logdir", "nodes", "ntasks",
    "parallelism", "pythonpath", "retry", "strict", "thorough", "check",
    "xla_force_host_platform_device_count",
    "xla_cpu_enable_concurrency_optimized_scheduler", "xla_gpu_deterministic_ops",
}  # fmt: skip
OTHERS = {"venv", "pytest", "pip", "mkdocs", "COMMAND", "MODULE"}


def parsed() -> tuple[list[str], set[str]]:
    """What is wrong with all commands, and the flags of all programs that are named."""
    lines: dict[str, list[list[str]]] = defaultdict(list)
    for path in PAGES:
        if path.name == "CHANGELOG.md":  # it names commands and flags that had another name
            continue
        for module, arguments in commands(path.read_text()):
            if module in OTHERS or module == "dlrm_jax COMMAND":
                continue
            # Placeholders stand for any value; that there is such a flag is checked below.
            lines[module].append([x for x in arguments if "…" not in x and x != "--help"])
    answers = json.loads(
        run(["-W", "ignore", str(ROOT / "tests" / "parse_commands.py")], json.dumps(lines))
    )
    assert len(answers) > 15
    errors = [error for answer in answers.values() for error in answer["errors"]]
    return errors, {flag for answer in answers.values() for flag in answer["flags"]}


def test_commands():
    errors, known = parsed()
    assert errors == []
    for path in PAGES:
        unknown = flags(path.read_text()) - known - {f"no{flag}" for flag in known} - FOREIGN
        if path.name != "CHANGELOG.md":
            assert not unknown, name_of(path)


# -- Words ---------------------------------------------------------------------------


def test_output_of_the_first_command():
    (output,) = (text for kind, text in blocks((ROOT / "README.md").read_text()) if kind == "text")
    train = (ROOT / "dlrm_jax" / "cli" / "train.py").read_text()
    assert output.splitlines()[0].split() == [*METRICS, "examples"]
    assert output.splitlines()[-1].partition(":")[0] in train


def test_the_checkout_is_installed_in_one_way():
    """In the messages of commands, too."""
    extras = r"\{(compiler\.)?extra\}|serve|torch|onnx|redis|kafka|retrieval|aot-cuda|aot-tpu"
    known = rf"pip install -e [\"']\.\[({extras})\][\"']"
    for path in [*PAGES, *(ROOT / "dlrm_jax").rglob("*.py")]:
        for found in re.findall(r"pip install .{0,4}\.\[.*", path.read_text()):
            assert re.match(known, found), f"{found} in {name_of(path)}"


def test_prose_uses_the_words():
    """Words that mean something else in the field, or that were renamed."""
    for path in PAGES:
        if path.name in ("CHANGELOG.md", "checkpoints.md"):  # they tell what was renamed
            continue
        for word in ("exchange_dtype", "TrainedModel", r"\bnatively\b", "occurrences"):
            assert not re.search(word, prose(path.read_text())), f"{word} in {name_of(path)}"

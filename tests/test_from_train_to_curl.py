"""The documented way from a log to an answer over HTTP, word for word but for the port."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, blocks
from main_job import Program, environment, in_background, run

from dlrm_jax.coordinator import free_address

PORT = "8000"
ENDING = "trap 'kill %1 2> /dev/null' EXIT"


def documented() -> list[str]:
    """The commands of the section, with a port that is free here."""
    text = (ROOT / "docs" / "serving.md").read_text()
    section = text.partition("## From `train` to `curl`\n")[2].partition("\n## ")[0]
    data, path = (block for _, block in blocks(section))
    assert len(path.splitlines()) == 5
    assert path.count(PORT) == 2
    free = free_address().rpartition(":")[2]
    return [*data.splitlines(), *path.replace(PORT, free).splitlines()]


def is_click_rate(answer: str) -> bool:
    (probability,) = json.loads(answer)["predictions"]
    return 0 < probability < 1


pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


@pytest.mark.thorough
def test_as_a_script(tmp_path: Path):
    """All of them in one shell, which finds this Python."""
    this = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}'
    script = "\n".join([this, "set -em", ENDING, *documented(), "kill %1", "wait"])
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    answer = re.search(r"^\{.*?\}", ended.stdout, re.MULTILINE)
    assert answer, ended.stderr[-2000:]
    assert is_click_rate(answer[0])
    assert ended.stderr.splitlines()[-1] == "stopped by SIGTERM"


def client(title: str, port: str) -> str:
    """The program of a section, as it asks another port."""
    text = (ROOT / "docs" / "serving.md").read_text()
    section = text.partition(f"### {title}\n")[2].partition("\n### ")[0]
    ((language, code),) = (x for x in blocks(section) if x[0])
    assert (language, code.count(PORT)) == ("py", 1)
    return code.replace(PORT, port)


def test_each_command(tmp_path: Path):
    """Python runs in forks of a process that has imported JAX, see `main_job`."""
    commands = documented()
    port = commands[-1].partition("localhost:")[2].partition("/")[0]
    with contextlib.ExitStack() as stack:
        server: Program | None = None
        for line in commands:
            python = re.fullmatch(r"python (-m dlrm_jax .*?)( &)?", line)
            if python is None:
                answer = subprocess.run(
                    ["bash", "-c", line],
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    timeout=100,
                    check=False,
                )
                assert is_click_rate(answer.stdout), answer.stderr
                continue
            module, name, command, *flags = shlex.split(python[1])
            given = {"program": (module, name, command), "cwd": tmp_path}
            if python[2]:
                server = stack.enter_context(in_background(*flags, **given))
            else:
                ended = run(*flags, **given)
                assert ended.returncode == 0, f"{line}: {ended.stderr[-2000:]}"
        assert server is not None

        def printed(title: str) -> str:
            ended = run(cwd=tmp_path, program=("-c", client(title, port)))
            assert ended.returncode == 0, ended.stderr[-2000:]
            return ended.stdout

        (found,) = re.findall(r"b'(.*)'", printed("Rows as Arrow"))
        assert len(json.loads(found)["predictions"]) == 100
        if importlib.util.find_spec("tritonclient"):
            assert len(re.findall(r"0\.\d+", printed("A client of Triton"))) == 3
        assert server.end(signal.SIGTERM).stdout.endswith("all requests are answered\n")

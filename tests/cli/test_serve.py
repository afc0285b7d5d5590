"""The command that serves: from its start to a signal, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from absl.flags import IllegalFlagValueError
from main_job import in_background, run

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.data.directory import load_directory
from dlrm_jax.errors import UserError
from dlrm_jax.serving.export import export
from dlrm_jax.serving.server import unanswered
from dlrm_jax.serving.trained_model import TrainedModel

SERVE = ("-m", "dlrm_jax", "serve")
PREVIOUS = Path(__file__).parents[1] / "previous"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported") / "small"
    model = TrainedModel.read(PREVIOUS / "run_of_format_3")
    export(model, directory, "small", "float32", load_directory(PREVIOUS / "data"))
    return directory


def address(server: Any) -> str:
    """Where a server listens, when it does."""
    deadline = time.monotonic() + 100
    while not (found := re.search(r"http://\S+:\d+", server.stdout)):
        assert server.returncode is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[0]


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM\n"),
        pytest.param(signal.SIGHUP, 0, "", marks=pytest.mark.thorough),
    ],
)
def test_from_its_start_to_a_signal(artifact: Path, number: signal.Signals, code: int, said: str):
    with in_background(str(artifact), "--port=0", "--batch_size=16", program=SERVE) as server:
        with urllib.request.urlopen(f"{address(server)}/v2/models/small", timeout=20) as response:
            assert json.load(response)["name"] == "small"
        ended = server.end(number)
    assert ended.returncode == code
    loaded, *rest = ended.stderr.splitlines(keepends=True)
    assert "artifact small of 3 tables in float32" in loaded
    assert "".join(rest) == said
    assert ended.stdout.splitlines()[-1] == "all requests are answered"


def test_requests_that_were_not_answered_are_counted():
    found = [unanswered(count) for count in range(3)]
    assert found == [
        "all requests are answered",
        "1 request wasn't answered",
        "2 requests weren't answered",
    ]


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.thorough), signal.SIGINT]
)
def test_the_second_signal_ends_it_at_once(artifact: Path, number: signal.Signals):
    with in_background(str(artifact), "--port=0", "--batch_size=16", program=SERVE) as server:
        host, port = address(server).removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx")
            time.sleep(0.3)
            os.kill(server.pid, number)
            time.sleep(0.5)
            assert server.returncode is None
            started = time.monotonic()
            ended = server.end(number)
    assert time.monotonic() - started < 5
    assert ended.returncode == 128 + number
    _, *rest = ended.stderr.splitlines()
    assert rest == [f"stopped by {number.name}; 1 request wasn't answered"]
    assert "all requests are answered" not in ended.stdout


def test_what_it_refuses(artifact: Path, tmp_path: Path):
    empty = tmp_path / "token"
    empty.touch()
    for flags, message in (
        ([str(tmp_path)], "expected an artifact of dlrm_jax export, which has a manifest.json"),
        ([str(tmp_path / "none")], "there is no"),
        ([str(artifact), f"--token_file={empty}"], "expected one word of ASCII"),
        ([str(artifact), "--host=192.0.2.1"], "cannot listen on 192.0.2.1"),
        ([], "--artifact is missing"),
    ):
        ended = run(*flags, program=SERVE)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("program", ["dlrm_jax.cli.serve"], indirect=True)
@pytest.mark.parametrize(
    "flag",
    ["--watch=1e300", "--max_mib=1e308", "--timeout=1e300", f"--keep_alive={10**30}"],
)
def test_numbers_that_no_clock_and_no_memory_has(program: ModuleType, flag: str):
    with pytest.raises(IllegalFlagValueError, match="in the range"):
        FLAGS([program.__name__, flag])


@pytest.mark.parametrize("program", ["dlrm_jax.cli.serve"], indirect=True)
def test_without_what_it_needs(
    program: ModuleType, artifact: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("app", "server"):
        monkeypatch.delitem(sys.modules, f"dlrm_jax.serving.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    FLAGS([program.__name__, f"--artifact={artifact}"])
    with pytest.raises(UserError, match=r"starlette\.applications isn.t installed"):
        program.main()

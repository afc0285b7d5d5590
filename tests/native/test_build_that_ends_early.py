"""A build that a signal or the first error ends: at once, with all its compilers."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from main_job import in_background, run

from dlrm_jax.errors import UserError
from dlrm_jax.native import library

# Each compiler and the process that it starts hold the pipe open. The first one may fail.
COMPILER = """#!/bin/sh
exec 9>{pipe}
echo started >&9
{first}
sleep 30
"""


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[int]:
    """The end to read of a pipe to whose other end compilers write."""
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    yield reading
    os.close(reading)


def compiler(directory: Path, first: str = "") -> str:
    """A command that compiles nothing, for a long time."""
    path = directory / "compiler"
    path.write_text(COMPILER.format(pipe=directory / "pipe", first=first), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def wait_until_started(pipe: int) -> None:
    ready, _, _ = select.select([pipe], [], [], 60)
    assert ready, "no compiler has been started"


def check_nothing_is_left(pipe: int, cache: Path) -> None:
    os.set_blocking(pipe, True)
    began = time.monotonic()
    while os.read(pipe, 1000):  # until nobody can write any more
        pass
    assert time.monotonic() - began < 10, "compilers have run on"
    assert not [x for x in (cache / "dlrm_jax" / "native").iterdir() if x.name != "build.lock"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program", ["dlrm_jax.native", "dlrm_jax"])
def test_a_signal(program: str, number: signal.Signals, tmp_path: Path, pipe: int):
    with in_background(
        *(["doctor"] if program == "dlrm_jax" else []),
        program=("-m", program),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        DLRM_JAX_BUILD="auto",
        CXX=compiler(tmp_path),
    ) as started:
        wait_until_started(pipe)
        began = time.monotonic()
        ended = started.end(number)
        assert time.monotonic() - began < 20
    assert ended.returncode == 128 + number
    assert ended.stderr.splitlines()[-1] == f"stopped by {number.name}"
    assert "Traceback" not in ended.stderr
    check_nothing_is_left(pipe, tmp_path / "cache")


def test_the_first_error(tmp_path: Path, pipe: int, monkeypatch: pytest.MonkeyPatch):
    """It isn't in UTF-8."""
    fails = rf"mkdir {tmp_path}/first 2>&9 && {{ printf 'x.cc: error: \351t\351\n' >&2; exit 1; }}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", compiler(tmp_path, fails))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"failed:\nx.cc: error: �t�$"):
        library.build()
    assert time.monotonic() - began < 20
    check_nothing_is_left(pipe, tmp_path / "cache")


def build(**variables: Any) -> str:
    """What the command says when it fails."""
    ended = run(program=("-m", "dlrm_jax.native"), **variables)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    return line


def test_a_cache_that_cannot_be_made(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    for cache in (file, Path("/proc")):
        said = build(XDG_CACHE_HOME=str(cache))
        assert said.startswith("error: the native kernels can't be built: [Errno ")
        assert f"'{cache}/dlrm_jax" in said
        assert "set XDG_CACHE_HOME to a directory that you can write to" in said


def test_a_compiler_that_is_no_program(tmp_path: Path):
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x00\x01")
    garbage.chmod(0o755)
    said = build(XDG_CACHE_HOME=str(tmp_path / "cache"), CXX=str(garbage))
    assert f"no C++ compiler named {garbage} can be started: Exec format error; install" in said

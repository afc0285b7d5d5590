"""``python -m dlrm_jax.native``, and the first use of the kernels, which builds them if it can."""

from __future__ import annotations

from pathlib import Path

import pytest
from main_job import run

from dlrm_jax.errors import UserError
from dlrm_jax.native import library


@pytest.mark.parametrize(
    ("argument", "code", "said"), [("--help", 0, "usage"), ("--bulid", 2, "no arguments")]
)
def test_arguments_build_nothing(tmp_path: Path, argument: str, code: int, said: str):
    program = ("-m", "dlrm_jax.native")
    ended = run(argument, program=program, XDG_CACHE_HOME=str(tmp_path))
    assert ended.returncode == code
    assert said in ended.stdout + ended.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.fixture
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(library.SETTING, "auto")
    library.load.cache_clear()
    yield
    library.load.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "no C++ compiler named"), ("false", "exit code 1")]
)
def test_without_a_compiler_a_note_says_so_and_jax_takes_over(
    nothing_built: None,
    compiler: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("CXX", compiler)
    assert not library.load()
    assert not library.load()
    notes = [x for x in capfd.readouterr().err.splitlines() if x.startswith("note: ")]
    assert len(notes) == 1
    assert said in notes[0]


def test_a_setting_that_there_is_not(nothing_built: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(library.SETTING, "no")
    with pytest.raises(UserError, match="DLRM_JAX_BUILD: expected auto or never, got 'no'"):
        library.load()


@pytest.mark.thorough
def test_the_first_use_builds_them_once(nothing_built: None, capfd: pytest.CaptureFixture[str]):
    assert library.load()
    library.load.cache_clear()
    assert library.load()
    assert capfd.readouterr().err.count("building the native kernels") == 1

"""``python -m dlrm_jax.native``, and the first use of the kernels, which builds them if it can."""

from __future__ import annotations

import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from main_job import run

from dlrm_jax.errors import UserError
from dlrm_jax.native import library
from dlrm_jax.native.dense_model import DenseModel, Layer


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
    monkeypatch.setattr(library, "is_built", lambda: True)
    with pytest.raises(UserError, match="DLRM_JAX_BUILD: expected auto or never, got 'no'"):
        library.load()


def test_a_build_deletes_what_a_killed_one_has_left(
    nothing_built: None, monkeypatch: pytest.MonkeyPatch
):
    directory = library.path().parent
    code = (
        "import os, signal\n"
        "from dlrm_jax.native import library\n"
        "library.compile_library = lambda made: (\n"
        "    made.touch(), os.kill(os.getpid(), signal.SIGKILL))\n"
        "library.build()"
    )
    ended = run(program=("-c", code), XDG_CACHE_HOME=str(directory.parents[1]), CXX="g++ -g")
    assert ended.returncode == -signal.SIGKILL
    (left,) = directory.iterdir()
    monkeypatch.setattr(library, "compile_library", lambda made: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        library.build()
    assert not left.exists()
    assert not list(directory.iterdir())


@pytest.fixture
def copied(cache: Path, nothing_built: None) -> Path:
    """A copy of the library, of which another test may take a part away."""
    target = library.path()
    made = cache / "dlrm_jax" / "native" / target.name
    target.parent.mkdir(parents=True)
    for suffix in (".so", ".sha256"):
        shutil.copy(made.with_suffix(suffix), target.with_suffix(suffix))
    return target


def doctor(copied: Path, kernels: str = "auto") -> str:
    """What it says of the native kernels."""
    ended = run(
        "doctor",
        program=("-m", "dlrm_jax"),
        XDG_CACHE_HOME=str(copied.parents[2]),
        DLRM_JAX_BUILD="never",
        DLRM_JAX_KERNELS=kernels,
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = (x for x in ended.stdout.splitlines() if x.startswith("native kernels"))
    return f"{line}\n{ended.stderr}"


def test_a_library_that_is_cut_off_is_not_loaded(copied: Path):
    """It would end the program by SIGBUS."""
    assert copied.stem in doctor(copied)
    with copied.open("r+b") as file:
        file.truncate(60_000)
    said = doctor(copied)
    assert copied.stem not in said.splitlines()[0]
    assert f"{copied} isn't as it was built" in said


@pytest.mark.parametrize("lost", [".so", ".sha256"])
def test_a_library_that_is_cut_off_is_built_again(
    copied: Path, lost: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    whole = copied.read_bytes()
    monkeypatch.setattr(library, "compile_library", lambda made: made.write_bytes(whole))
    with copied.with_suffix(lost).open("r+b") as file:
        file.truncate(30)
    assert library.load()
    assert copied.read_bytes() == whole
    said = capfd.readouterr().err
    assert f"building the native kernels for this processor, again: {copied} isn't as it" in said
    library.load.cache_clear()
    assert library.load()
    assert not capfd.readouterr().err


def test_the_setting_that_forbids_to_use_them(copied: Path, monkeypatch: pytest.MonkeyPatch):
    assert "none  " in (said := doctor(copied, "jax"))
    assert "not used: DLRM_JAX_KERNELS=jax" in said
    assert copied.stem in doctor(copied, "")
    monkeypatch.setenv(library.USE, "off")
    with pytest.raises(UserError, match="DLRM_JAX_KERNELS: expected auto or jax, got 'off'"):
        library.load()


def test_another_command_of_the_compiler_is_another_library(monkeypatch: pytest.MonkeyPatch):
    names = set()
    for command in ("", "c++", "c++ -fsanitize=address", "clang++"):
        monkeypatch.setenv("CXX", command)
        names.add(library.path())
    assert len(names) == 3, "without a command it is c++"


def test_what_was_pickled_where_they_are(copied: Path, monkeypatch: pytest.MonkeyPatch):
    layer = Layer(np.ones((1, 1), np.float32), np.zeros(1, np.float32), False)
    pickled = pickle.dumps(DenseModel([layer], [layer], [], False))
    monkeypatch.setenv(library.SETTING, "never")
    copied.unlink()
    library.load.cache_clear()
    with pytest.raises(UserError, match=r"expected them .* found none: .* run python -m"):
        pickle.loads(pickled)


@pytest.mark.thorough
def test_the_first_use_builds_them_once(nothing_built: None, capfd: pytest.CaptureFixture[str]):
    assert library.load()
    library.load.cache_clear()
    assert library.load()
    assert capfd.readouterr().err.count("building the native kernels") == 1

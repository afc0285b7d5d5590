"""The environment of PyTorch's contestants is made once, and finished if it's half-made."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_jax.errors import UserError
from experiments.benchmarks.peers import environment


@pytest.mark.thorough  # it makes an environment
def test_half_made_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    requirements, directory = tmp_path / "requirements.txt", tmp_path / "made"
    monkeypatch.setattr(environment, "_REQUIREMENTS", [requirements])
    requirements.write_text("--no-index\nno-such-package==1\n")
    with pytest.raises(UserError, match=r"pip install .* failed, code 1: ERROR: .*no-such-package"):
        environment.ready(directory)
    assert (directory / "pyvenv.cfg").exists(), "otherwise this isn't about a half-made one"

    requirements.write_text("")
    python = environment.ready(directory)
    assert python.exists()

    def refuse(command: object) -> None:
        raise AssertionError(command)

    with monkeypatch.context() as context:
        context.setattr(environment, "_call", refuse)
        assert environment.ready(directory) == python
        requirements.write_text("# others\n")
        with pytest.raises(AssertionError, match="venv"):
            environment.ready(directory)


def test_a_directory_of_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="contains other files"):
        environment.ready(tmp_path)
    with pytest.raises(UserError, match=r"got the file .*thesis\.tex"):
        environment.ready(tmp_path / "thesis.tex")


def test_all_requirements_are_pinned():
    for file in environment._REQUIREMENTS:
        lines = [line for line in file.read_text().splitlines() if line and line[0] not in "#-"]
        assert lines
        assert all("==" in line for line in lines)

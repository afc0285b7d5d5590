"""``python -m dlrm_jax.native``: it builds only where it is asked to."""

from __future__ import annotations

from pathlib import Path

import pytest
from main_job import run


@pytest.mark.parametrize(
    ("argument", "code", "said"), [("--help", 0, "usage"), ("--bulid", 2, "no arguments")]
)
def test_arguments_build_nothing(tmp_path: Path, argument: str, code: int, said: str):
    program = ("-m", "dlrm_jax.native")
    ended = run(argument, program=program, XDG_CACHE_HOME=str(tmp_path))
    assert ended.returncode == code
    assert said in ended.stdout + ended.stderr
    assert not list(tmp_path.rglob("*.so"))

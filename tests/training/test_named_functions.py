"""A user's module that fails as it is imported is an error of the setting that names it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.training.model import model_class
from dlrm_jax.training.named_functions import named_function


@pytest.mark.parametrize(
    ("name", "source", "cause"),
    [
        ("syntax", "def f(:", r"SyntaxError: invalid syntax \(broken_syntax\.py, line 1\)$"),
        ("name", "\nf = missing", r"NameError: name 'missing' .*broken_name\.py:2\)$"),
        ("exit", "raise SystemExit(3)", r"SystemExit: 3 \(.*broken_exit\.py:1\)$"),
        ("file", "open('none.txt')", r"FileNotFoundError: .*broken_file\.py:1\)$"),
    ],
)
def test_what_a_module_raises(
    name: str, source: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / f"broken_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"^loss: can't import 'broken_{name}:f': {cause}"):
        named_function("loss", f"broken_{name}:f")
    config = dataclasses.replace(Config(), model=f"broken_{name}:M")
    with pytest.raises(UserError, match=rf"^model: can't import 'broken_{name}:M': {cause}"):
        model_class(config)


def test_a_name_within_a_package():
    with pytest.raises(UserError, match=r"can't import '\.x:f': TypeError"):
        named_function("loss", ".x:f")

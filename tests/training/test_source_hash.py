"""The source of a user's own code is told from that before a change."""

from __future__ import annotations

import ast
import importlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.training import source_hash as module
from dlrm_jax.training.source_hash import source_hashes

FILES = {
    "mine/__init__.py": "try:\n    import broken\nexcept SyntaxError: ...\n",
    "broken.py": "print 'of Python 2'\n",
    "mine/models.py": "from .layers import deep\nimport beside, jax\nclass Model: ...\n",
    "mine/layers/__init__.py": "from ..sizes import *\n",
    "mine/layers/deep.py": "def late():\n    import mine.late\n    from .....x import y\n",
    "mine/sizes.py": "A = 1\n",
    "mine/late.py": "B = 1\n",
    "beside.py": "import base\nC = 1\n",
    "jax.py": "",  # not the one that is imported, but it would be
    "other.py": "",
    "mine/other.py": "",
}
UNUSED = ("other.py", "mine/other.py")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "base.py").write_text("D = 1\n")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def source_hash(text: str) -> str:
    """As a new process has it."""
    module.source_hash.cache_clear()
    return source_hashes([text], [])[text]


def test_each_file_that_is_imported_counts(directory: Path):
    before = source_hash("mine.models:Model")
    assert before == source_hash("mine.models:Model")
    texts = {**FILES, "elsewhere/base.py": "D = 1\n"}
    for name, text in texts.items():
        (directory / name).write_text(text + "# changed\n")
        assert (source_hash("mine.models:Model") == before) == (name in UNUSED), name
        (directory / name).write_text(text)
    assert source_hash("mine.models:Model") == before


def test_the_source_that_was_imported_counts_in_this_process(directory: Path):
    before = source_hash("mine.models:Model")
    (directory / "beside.py").write_text("C = 2\n")
    assert source_hashes(["mine.models:Model"], []) == {"mine.models:Model": before}


def test_names_of_ours_have_no_hash(directory: Path):
    assert not source_hashes(["dlrm"], ["bce", "focal:2", "listwise:user"], ["gauc:user"])
    mine = "mine.models:Model"
    named = ("beside:C", f"{mine}", "beside:D")
    found = source_hashes([mine, "dcn"], ["bce", "beside:C"], ["recall_at_precision:0.9"])
    assert {*found} == {*named[:2]}
    assert {*source_hashes([], [], ["beside:C:max"])} == {"beside:C"}


def test_what_has_no_source():
    with pytest.raises(UserError, match="model: expected itertools to have a Python file"):
        source_hash("itertools:count")
    with pytest.raises(UserError, match="model: can't import 'nowhere:Model'"):
        source_hash("nowhere:Model")


def test_a_module_in_a_zip_file(directory: Path, monkeypatch: pytest.MonkeyPatch):
    def pack(text: str) -> str:
        with zipfile.ZipFile(directory / "pack.zip", "w") as file:
            file.writestr("packed.py", text)
        return source_hash("packed:A")

    monkeypatch.syspath_prepend(directory / "pack.zip")
    found = [pack(text) for text in ("A = 1\n", "A = 2\n", "A = 1\n")]
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_a_class_of_this_program_has_a_hash_of_its_own():
    names = ("dlrm_jax.models.dlrm:DLRM", "dlrm_jax.models.dcn:DCN")
    assert len({source_hash(name) for name in names}) == 2


def test_a_module_that_is_too_deep_to_be_read(directory: Path, monkeypatch: pytest.MonkeyPatch):
    def parse(*_: object) -> None:
        raise RecursionError

    before = source_hash("mine.models:Model")
    monkeypatch.setattr(ast, "parse", parse)
    assert source_hash("mine.models:Model") != before, "its imports are unknown"

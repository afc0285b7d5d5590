"""A small log, its preparation stopped at a function, and what a user has beside it."""

import pytest

from dlrm_jax.data.preprocessing import freshness
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema

ROWS = 70
OPTIONS = Options(Schema("y", ("a",)))
RARE = Options(Schema("y", ("a",)), min_count=2)


def log(first=0):
    return "y,a\n" + "".join(f"{(i + first) % 2},{i % 9}\n" for i in range(ROWS))


class StoppedError(Exception):
    pass


def stop(*_):
    raise StoppedError


def interrupt(monkeypatch, raw, owner, name, options=OPTIONS):
    """Stops the preparation of ``out`` where it would call a function; returns what is left."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(StoppedError):
            preprocess([raw], raw.parent / "out", options)
    return raw.parent / "out.partial"


def all_files(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else path.is_symlink()
        for path in directory.rglob("*")
    }


def users_own(path, kind):
    """Makes what a user may have there: a file, a directory or a link to one."""
    if kind == "file":
        path.write_text("mine")
        return
    directory = path if kind != "link" else path.with_name("elsewhere")
    directory.mkdir()
    name = freshness.BEGUN if kind == "same name" else "notes"
    (directory / name).write_text('{"format": 2, "options": {}, "inputs": ["at noon"]}')
    if kind == "link":
        path.symlink_to(directory)

"""Files and directories that tests write, and what they hold."""

import pytest


class StoppedError(Exception):
    pass


def write(path, kind, content):
    """Writes a file, or a directory with a file in a directory."""
    if kind == "file":
        path.write_text(content)
    else:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text(content)


def read(path):
    return (path / "inner" / "file" if path.is_dir() else path).read_text()


KINDS = pytest.mark.parametrize("kind", ["file", "directory"])

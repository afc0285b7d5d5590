"""Files that are there completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def made(path: Path) -> Iterator[Path]:
    """Gives another name to write to, which becomes ``path`` when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes or replaces a file in one step."""
    with made(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")

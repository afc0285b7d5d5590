"""What a server asks of a kind of models: to load versions, and to answer requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dlrm_jax.serving.answers import Answers
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.served_version import ServedVersion
from dlrm_jax.serving.versions import Version


class ModelKind(Protocol):
    """The models of a server."""

    def table_paths(self, directory: Path) -> Sequence[Path]:
        """The files of a version's tables, which nobody must write into."""
        ...

    def load(self, version: Version) -> ServedVersion[Any]:
        """Loads a version and warms it up."""
        ...

    def check(self) -> None:
        """Checks the settings, once versions are loaded."""
        ...

    def forget(self, version: str) -> None:
        """Forgets a version that isn't served any more."""
        ...

    def answers(self, repository: Repository) -> Answers:
        """What answers requests for predictions."""
        ...

"""The deltas of an artifact, one after the other, as long as each follows the one before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dlrm_jax.artifact.delta import DELTA, Delta, DeltaNote, hash_of, read_delta
from dlrm_jax.artifact.manifest import MANIFEST, Manifest
from dlrm_jax.errors import DamagedDeltaError


def deltas_of(artifact: Path) -> Path:
    """The directory of an artifact's deltas, beside it: nothing is written into an artifact."""
    own = artifact.resolve()
    return own.with_name(f"{own.name}.deltas")


def delta_path(deltas: Path, number: int) -> Path:
    """The directory of a delta among those of its artifact."""
    return deltas / f"{number:06}"


class DeltaChain:
    """The deltas of an artifact, in order.

    Args:
        artifact: directory of the artifact.
        manifest: its manifest.

    Attributes:
        directory: directory of the deltas, which needn't be there.
        base: hash of the artifact's manifest.
        before: hash of the last delta that was appended, or ``base``.
        number: number of that delta; 0 for none.
        step: number of training steps of its state, or of the artifact.
        bytes: size of the deltas that were appended.
    """

    def __init__(self, artifact: Path, manifest: Manifest):
        self.directory = deltas_of(artifact)
        self.base = self.before = hash_of(artifact / MANIFEST)
        self.number, self.step, self.bytes = 0, manifest.step, 0
        self._manifest = manifest

    def read_next(self) -> Delta | None:
        """The delta that `append` would go on to, checked; None if there is none yet.

        Raises:
            UserError: a later version wrote it.
            DamagedDeltaError: it is damaged, or of another artifact or chain; or it is missing,
                though there are later ones.
        """
        number = self.number + 1
        there = self.numbers()
        path = delta_path(self.directory, number)
        if number not in there:
            if there and there[-1] > number:
                later = f"it is missing, and delta {there[-1]} is there"
                raise DamagedDeltaError(str(path), DELTA, later)
            return None
        delta = read_delta(path, self._manifest)
        note = delta.note
        for what, noted, expected in (
            ("number", note.number, number),
            ("base", note.base, self.base),
            ("before", note.before, self.before),
        ):
            if noted != expected:
                raise DamagedDeltaError(
                    str(path),
                    DELTA,
                    f"it doesn't follow what is there: expected {what} {expected}, it has {noted}",
                )
        return delta

    def append(self, note: DeltaNote, content: str) -> None:
        """Goes on to a delta that was written or applied, of this description and its hash."""
        self.number, self.step, self.before = note.number, note.step, content
        self.bytes += sum(file.bytes for file in note.files.values())

    def rest(self) -> Iterator[Delta]:
        """Yields the deltas that are left, in order, and goes on to each."""
        while delta := self.read_next():
            self.append(delta.note, delta.content)
            yield delta

    def numbers(self) -> list[int]:
        """The numbers of the deltas that are there, ascending."""
        try:
            names = [path.name for path in self.directory.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if len(name) == 6 and name.isdecimal())

"""Which files of a directory are entries of a journal."""

from __future__ import annotations

from pathlib import Path

from dlrm_jax.training.journal_files import entries_in, entry_name, set_entries_aside


def test_entries_of_any_number_are_found(tmp_path: Path):
    numbers = [1, 999_999, 1_000_000, 12_345_678]
    for name in [*map(entry_name, numbers), "0000001", "1", "000001.tmp", "\u0663" * 6]:
        (tmp_path / name).touch()
    assert entries_in(tmp_path) == numbers
    assert entries_in(tmp_path / "none") == []


def test_entries_set_aside_twice_get_two_directories(tmp_path: Path):
    checkpoint, journal = tmp_path / "00000001", tmp_path / "00000001.journal"
    journal.mkdir()
    for expected in ("00000001.journal.damaged", "00000001.journal.damaged.2"):
        for number in (1, 2, 3):
            (journal / entry_name(number)).touch()
        assert set_entries_aside(checkpoint, 1) == tmp_path / expected
        assert (entries_in(journal), entries_in(tmp_path / expected)) == ([1], [2, 3])
    assert set_entries_aside(checkpoint, 1) is None

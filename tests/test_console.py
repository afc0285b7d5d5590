from __future__ import annotations

import io
import re
import sys
import time

import pytest

from dlrm_jax.cli import launch
from dlrm_jax.console import once, status, telling_time


class Broken(io.StringIO):
    """A pipe without a reader."""

    def write(self, s: str) -> int:
        raise BrokenPipeError


def test_a_line_that_cannot_be_printed_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr", Broken())
    status("a line", error=True)
    # The end of the processes is noticed though their lines can't be shown.
    script = "import sys; print(('x' * 99 + chr(10)) * 10_000, file=sys.stderr)"
    with launch._started([[sys.executable, "-c", script]]) as processes:
        ended = launch._follow(processes).get(timeout=60)
    assert ended == launch.Ended(0, 0, by_others=False)


def test_a_line_is_printed_at_once(capsys: pytest.CaptureFixture[str]):
    status("one", end=", ")
    status("two")
    assert capsys.readouterr().out == "one, two\n"


def test_a_text_is_said_once():
    said: list[str] = []
    say = once(said.append)
    for text in "abab":
        say(text)
    assert said == ["a", "b"]


def test_what_takes_long_says_so_ever_more_rarely(capsys: pytest.CaptureFixture[str]):
    with telling_time("working", first=0.2):
        time.sleep(1)
    lines = capsys.readouterr().err.splitlines()
    time.sleep(0.5)
    assert 1 <= len(lines) <= 2
    assert all(re.fullmatch("working: [01] s so far", line) for line in lines)
    assert not capsys.readouterr().err
    with telling_time("working", first=60):
        pass
    assert not capsys.readouterr().err


def test_letters_that_a_stream_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    status("w\u00e4 \udcff")
    assert stream.buffer.getvalue() == b"w\\xe4 \\udcff\n"  # pyright: ignore


def test_a_stream_that_was_closed_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout", None)
    status("a line")

"""The program that trains RecBole's SASRec, where there is no RecBole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "experiments" / "next_item" / "recbole_sasrec.py"


def test_it_says_what_is_missing():
    result = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    expected = "expected RecBole 1.2.1 in this environment, got: No module named"
    assert result.stderr.startswith(expected), result.stderr

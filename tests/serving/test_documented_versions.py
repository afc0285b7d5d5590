"""The documented way from a version to the one before it and back, but for port and name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from clients import serving
from documents import ROOT, blocks


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_a_version_is_taken_back_and_rolled_forward(artifact: Path, tmp_path: Path):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    section = text.partition("\n### Versions")[2].partition("\n### ")[0]
    ((_, block),) = (x for x in blocks(section) if x[0] == "sh")
    promised = [line.partition(" # ")[2] for line in block.splitlines() if "curl" in line]
    assert block.count("8000/v2/repository/models/models/load") == len(promised) == 2
    for name in ("1", "2"):
        shutil.copytree(artifact, tmp_path / "models" / name)
    with serving(tmp_path / "models") as client:
        own = block.replace("8000", str(client.port)).replace("models/models/", "models/small/")
        ended = subprocess.run(
            ["bash", "-ec", own.replace("curl", "echo; curl -s")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ended.stdout.split() == promised
        assert client.server.repository.versions == ["2"]

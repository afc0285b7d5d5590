"""The cache of compiled programs: entries that a kill or a full disk has torn are replaced."""

from __future__ import annotations

from pathlib import Path

from main_job import run

_CODE = """
import sys, warnings
from pathlib import Path
import jax
from dlrm_jax.cli.compilation_cache import keep_compiled

keep_compiled(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
for factor in (2, 3):  # of one name
    jax.jit(lambda x: x * factor)(1.0)
warnings.warn("another one")
"""


def test_torn_entries_are_written_anew(tmp_path: Path):
    def compiled() -> tuple[dict[str, bytes], list[str]]:
        ended = run(str(tmp_path), program=("-c", _CODE))
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count("UserWarning: another one") == 1
        kept = {path.name: path.read_bytes() for path in tmp_path.glob("*-cache")}
        return kept, [x for x in ended.stderr.splitlines() if "cache" in x or "note:" in x]

    whole, said = compiled()
    assert len(whole) >= 2
    assert not said
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    mended, said = compiled()
    assert mended.keys() == whole.keys()
    assert all(len(mended[name]) > len(whole[name]) // 2 for name in whole)
    assert said
    assert all(x.startswith("note: the compiled jit_") for x in said)
    assert compiled() == (mended, [])

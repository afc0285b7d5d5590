"""``dlrm_jax doctor``: what the machine has, and what to do about the rest."""

from __future__ import annotations

import jax
import pytest

from dlrm_jax.cli import doctor
from dlrm_jax.native import library


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    doctor.main()
    _, *lines = capsys.readouterr().out.splitlines()
    return {line[:16].split("  ")[0].strip(): line for line in lines}


def test_what_is_missing_comes_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    absent = ("onnx", "usearch")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else "1.2.3")
    monkeypatch.setattr(doctor.processor, "instruction_sets", lambda: ["avx512_bf16"])
    found = rows(capsys)
    assert "no no-such-compiler" in found["C++ compiler"]
    assert library.version() is None  # tests do without them
    assert (
        "not built unasked: DLRM_JAX_BUILD=never; python -m dlrm_jax.native builds them"
        in (found["native kernels"])
    )
    monkeypatch.setenv(library.SETTING, "auto")
    assert "dlrm_jax.native builds them, or says why it can't" in rows(capsys)["native kernels"]
    assert "brings little here: no native kernels, see below" in found["instructions"]
    assert "commands set them" in found["allocator"]
    assert "pip install -e '.[onnx]' in the checkout, for convert" in found["onnx"]
    assert "pip install -e '.[retrieval]' in the checkout" in found["usearch"]
    assert "jax 1.2.3" in found["packages"]


def test_what_is_there_says_what_it_is_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    monkeypatch.setattr(library, "version", lambda: "kernels-0123")
    monkeypatch.setattr(doctor.layers, "supports_bfloat16", lambda: True)
    found = rows(capsys)
    assert "lookups, updates" in found["native kernels"]
    assert "its MLPs are native" in found["instructions"]
    assert "hugetlb=1" in found["allocator"]
    assert "8 x cpu" in found["devices"]


def test_a_processor_without_products_of_bfloat16(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(doctor.processor, "instruction_sets", lambda: ["avx2"])
    assert "no products of bfloat16 in this processor" in rows(capsys)["instructions"]


@pytest.mark.parametrize(
    ("setting", "value", "row", "said"),
    [
        ("CXX", "'unclosed", "C++ compiler", "CXX: expected the command of a C++ compiler"),
        (library.USE, "off", "native kernels", "DLRM_JAX_KERNELS: expected auto or jax"),
        (library.SETTING, "Never", "native kernels", "DLRM_JAX_BUILD: expected auto or never"),
    ],
)
def test_a_wrong_setting_stands_in_its_row(
    setting: str,
    value: str,
    row: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(setting, value)
    library.load.cache_clear()
    assert said in rows(capsys)[row]
    library.load.cache_clear()


def test_devices_that_there_are_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(platform: str | None = None):
        raise AssertionError  # as JAX does where it has no cuda

    monkeypatch.setattr(jax, "devices", fail)
    found = rows(capsys)["devices"]
    assert found.startswith("devices ")
    assert " none " in found
    assert "expected some devices of JAX, with JAX_PLATFORMS" in found


def test_a_blank_name_of_the_compiler_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", "c++")
    usual = rows(capsys)["C++ compiler"]
    monkeypatch.setenv("CXX", " ")
    assert rows(capsys)["C++ compiler"] == usual

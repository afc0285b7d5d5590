import dataclasses
import os
import re

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from main_job import run

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import (
    batch_sharding,
    check_accelerators,
    emulate_devices,
    make_mesh,
    parse_mesh,
)

GOOD = re.compile(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}")


@given(st.integers(1, 999_999), st.integers(1, 999_999))
def test_a_shape_is_read_back(data, model):
    assert parse_mesh(f"{data}x{model}") == (data, model)


@given(st.one_of(st.text(), st.text("0123456789x-+. \n", max_size=8)))
def test_bad_text_is_named(text):
    if GOOD.fullmatch(text):
        return
    with pytest.raises(UserError, match="expected DxM") as raised:
        parse_mesh(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["", "8", "0x8", "08x1", "2x", "2X4", "2x4x1", "-1x8", "2x4\n"])
def test_near_misses_are_refused(text):
    with pytest.raises(UserError, match=re.escape(f"got {text!r}")):
        parse_mesh(text)
    with pytest.raises(UserError, match="--against: expected"):
        parse_mesh(text, "--against")


@pytest.mark.parametrize("shape", ["1x1", "2x4", "8x1", (1, 8), (3, 2)])
def test_a_mesh_is_made_of_the_first_devices(shape):
    mesh = make_mesh(shape)
    data, model = parse_mesh(shape) if isinstance(shape, str) else shape
    assert dict(mesh.shape) == {"data": data, "model": model}
    assert mesh.devices.reshape(-1).tolist() == jax.devices()[: data * model]


def test_a_mesh_larger_than_the_machine_names_both_counts():
    with pytest.raises(UserError, match=r"mesh 3x5 needs 15 devices, but there are 8 of cpu"):
        make_mesh("3x5")


def test_emulation_that_comes_too_late_explains_itself():
    emulate_devices(8)
    emulate_devices(3)  # there are more already
    with pytest.raises(UserError, match="at most 4,096 emulated devices, got 4,097"):
        emulate_devices(4097)
    with pytest.raises(UserError, match=r"emulate_devices\(9\) comes too late: .* 8 of cpu"):
        emulate_devices(9)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    id: int
    process_index: int = 0
    platform: str = "gpu"


def test_accelerators_are_replaced_only_where_that_is_asked_for(monkeypatch):
    """On a machine with two of them."""
    of = {None: [Accelerator(0), Accelerator(1)], "cpu": jax.devices()[:1]}
    monkeypatch.setattr(jax, "devices", lambda kind=None: of[kind])
    check_accelerators((1, 2))
    for check in (check_accelerators, make_mesh):
        with pytest.raises(UserError, match=r"needs 8 devices, .* 2 of gpu; .* --emulate of the"):
            check((2, 4))
    default = {}
    monkeypatch.setattr(jax.config, "update", default.__setitem__)
    of["cpu"] = jax.local_devices()  # after emulate_devices(8)
    assert len(of["cpu"]) == 8
    assert make_mesh((2, 4)).devices.flat[0].platform == "cpu"
    assert default == {"jax_default_device": of["cpu"][0]}
    with pytest.raises(UserError):  # programs ask for them whether there are accelerators or not
        check_accelerators((2, 4))


def test_a_smaller_emulation_takes_nothing_back():
    program = (
        "import jax\n"
        "from dlrm_jax.mesh import emulate_devices, make_mesh\n"
        "emulate_devices(4)\n"
        "emulate_devices(1)\n"
        "print(make_mesh('2x2').size, len(jax.devices()))\n"
    )
    ended = run(program=("-c", program), XLA_FLAGS="")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "4 4\n"


def test_devices_are_shared_out_among_processes(monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", 1)  # of a process of its own
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", "")
    emulate_devices(8, processes=2)
    assert changed["jax_num_cpu_devices"] == 4
    # One device each, too, starts collectives in the order of the others.
    emulate_devices(2, processes=2)
    assert "concurrency_optimized_scheduler=false" in os.environ["XLA_FLAGS"]
    with pytest.raises(UserError, match="8 devices can't be shared out evenly among 3 processes"):
        emulate_devices(8, processes=3)


def test_batches_are_split_over_all_devices_after_the_leading_axes():
    mesh = make_mesh("2x4")
    assert batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
    assert batch_sharding(mesh, leading=1).shard_shape((5, 16, 3)) == (5, 2, 3)
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "model"))


def test_what_the_environment_says_wins(monkeypatch):
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    own = (
        "--xla_force_host_platform_device_count=3 "
        "--xla_cpu_enable_concurrency_optimized_scheduler=true"
    )
    monkeypatch.setenv("XLA_FLAGS", own)
    emulate_devices(5)
    assert "jax_num_cpu_devices" not in changed
    assert os.environ["XLA_FLAGS"] == own


def test_several_devices_start_collectives_in_one_order(monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", 1)
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    emulate_devices(1)
    assert os.environ["XLA_FLAGS"] == "--xla_other=1"
    emulate_devices(5)
    assert changed["jax_num_cpu_devices"] == 5
    added = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    assert os.environ["XLA_FLAGS"] == f"{added} --xla_other=1"
    emulate_devices(5)
    assert os.environ["XLA_FLAGS"] == f"{added} --xla_other=1"


def test_xla_flags_of_a_file(tmp_path):
    """XLA itself reads the file, and what is after the flags it takes for a comment."""
    file = tmp_path / "flags"
    file.write_text("--xla_force_host_platform_device_count=3\n# three of them\n")
    program = (
        "import os, jax\n"
        "from dlrm_jax.mesh import emulate_devices, make_mesh\n"
        "emulate_devices(2)\n"
        "print(len(jax.devices()), make_mesh('1x2').size, os.environ['XLA_FLAGS'].split()[0])\n"
    )
    ended = run(program=("-c", program), XLA_FLAGS=str(file))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "3 2 --xla_cpu_enable_concurrency_optimized_scheduler=false\n"


@pytest.mark.parametrize("content", [None, b"\0", b"\xff"])
def test_xla_flags_that_are_neither_flags_nor_a_file(content, tmp_path, monkeypatch):
    if content is not None:
        (tmp_path / "flags").write_bytes(content)
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    with pytest.raises(UserError, match=r"XLA_FLAGS: expected flags .* or a text file .*/flags'"):
        emulate_devices(8)


@pytest.mark.parametrize(
    ("platforms", "why"),
    [("cuda", "found none of them"), ("tpu", "libtpu.so"), ("x", "'x' is not")],
)
def test_devices_that_there_are_not(platforms, why):
    program = (
        "import jax\n"
        "from dlrm_jax.errors import UserError\n"
        "from dlrm_jax.mesh import check_accelerators, host_mesh, make_mesh\n"
        f"jax.config.update('jax_platforms', {platforms!r})\n"  # was imported without
        "for call in lambda: make_mesh('1x1'), lambda: check_accelerators((1, 1)), host_mesh:\n"
        "    try: call()\n"
        "    except UserError as error: print(str(error).replace('\\n', ' '))\n"
    )
    ended = run(program=("-c", program))
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 3, ended.stdout
    for line in lines:
        assert f"expected some devices of JAX, with JAX_PLATFORMS={platforms}; found" in line
        assert why in line

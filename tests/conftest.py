"""Eight emulated devices for every test, and shapes and dtypes checked at every call."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import jax
import pytest
import type_checks
from as_users import QUICKLY

gc.set_threshold(50_000, 20, 100)  # imports and tracing allocate much and free little
# Asserts in what the tests of a directory share show their values as those in tests do.
pytest.register_assert_rewrite("main_job", "small_collection")
# How long an example takes says how busy the machine is: it may be compiling. The next run draws
# other examples.
hypothesis.settings.register_profile("project", deadline=None, max_examples=30)
hypothesis.settings.load_profile("project")
type_checks.install()

from dlrm_jax import backend  # noqa: E402
from dlrm_jax.mesh import emulate_devices  # noqa: E402

_MOST_CACHED = 2**30  # bytes of compiled programs that the next run of the tests begins with

_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_FLAGS} {QUICKLY}"
emulate_devices(8)
jax.devices()
os.environ["XLA_FLAGS"] = _FLAGS


def pytest_configure(config: pytest.Config):
    """Caches of the tests' own: the user's may hold native kernels, which change what is run.

    Two thirds of the tests' time is compilation, often of what another test has compiled.
    """
    if asked := config.getoption("--accelerator_rows"):
        own = {"gpu": backend.GPU, "tpu": backend.TPU}[asked]
        backend.CPU = dataclasses.replace(
            backend.CPU,
            row_sums=own.row_sums,
            row_kernels=own.row_kernels,
            weight_first=own.weight_first,
            packed_from=own.packed_from and 2,  # tests have narrow rows
        )
    # A shell lets programs in its background ignore it, and some tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # With it, each program that a test starts would compile all modules of the package again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("home"))
    os.environ["DLRM_JAX_BUILD"] = "never"
    programs = config.cache.mkdir("xla")
    is_worker = hasattr(config, "workerinput")
    if not is_worker and sum(file.stat().st_size for file in programs.iterdir()) > _MOST_CACHED:
        shutil.rmtree(programs)
        programs.mkdir()
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # With a limit, JAX would read the ages of all programs before it writes one: 60 ms among 1,300.
    jax.config.update("jax_compilation_cache_max_size", -1)


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect():
    """Garbage is looked for among what this file's tests make.

    Each save and load of a checkpoint collects garbage. A quarter of its time was spent on all that
    JAX keeps of earlier tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a small run, with its vocabularies; not to be changed."""
    from dlrm_jax.data.directory import load_directory
    from dlrm_jax.serving.export import export
    from dlrm_jax.serving.trained_model import TrainedModel

    previous = Path(__file__).parent / "previous"
    directory = tmp_path_factory.mktemp("exported") / "artifact"
    model, data = TrainedModel.read(previous / "run_of_format_3"), load_directory(previous / "data")
    export(model, directory, "small", "float32", data)
    return directory


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]):
    part, parts = config.getoption("--thorough") or (0, 1)
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    for number, item in enumerate(thorough):
        if number % parts + 1 != part:
            item.add_marker(pytest.mark.skip("with --thorough"))


def part_of_parts(text: str) -> tuple[int, int]:
    """K and N of K/N."""
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError
    return part, parts


def pytest_sessionfinish():
    """Waits for the process of `main_job.run`, so that its time counts as that of the tests."""
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]


def pytest_addoption(parser: pytest.Parser):
    parser.addoption(
        "--thorough",
        nargs="?",
        const=(1, 1),
        type=part_of_parts,
        metavar="K/N",
        help="also the tests that take long, or the K-th of N parts of them",
    )
    parser.addoption(
        "--accelerator_rows",
        choices=("gpu", "tpu"),
        help="the emulated devices store, look up and update rows, and sum gradients of equal rows "
        "and weights of samples, in the way of these accelerators",
    )


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function after which nothing can be made in a directory, as in one of another user."""

    def refusing(make: Callable[..., None], directory: Path) -> Callable[..., None]:
        def refuse(path: Path, *arguments: Any, **options: Any) -> None:
            if path.is_relative_to(directory) and not path.is_dir():
                raise PermissionError(13, "Permission denied", str(path))
            make(path, *arguments, **options)

        return refuse

    def protect(directory: Path) -> None:
        for name in ("mkdir", "touch"):
            monkeypatch.setattr(Path, name, refusing(getattr(Path, name), directory))

    return protect

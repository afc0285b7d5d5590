"""What every program here shares: flags from the config, errors as messages, exit codes."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Literal, NoReturn, get_args, get_origin

import jax
from absl import app, flags, logging

from dlrm_jax.cli.allocator import restart_with_settings
from dlrm_jax.cli.launch import ANOTHER_LOST, end_with_launcher
from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory
from dlrm_jax.mesh import check_accelerators, emulate_devices, make_mesh, parse_mesh
from dlrm_jax.presets import PRESETS
from dlrm_jax.processes import CLUSTER, is_distributed, is_process_0, join
from dlrm_jax.training.loop import Interrupted
from dlrm_jax.training.model import unread

FLAGS = flags.FLAGS

# What a file system answers that is full, limited, or not to be written to.
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)

# What the errors of collectives and of JAX's coordinator tell of when another process has gone.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "heartbeat")


def define_run_flags(default_preset: str) -> None:
    """Those of the mesh, ``--preset``, and for each field of `Config` a flag that overrides it."""
    define_mesh_flags()
    flags.DEFINE_string("preset", default_preset, ", ".join(PRESETS))
    for field in dataclasses.fields(Config):
        kind = FIELD_TYPES[field.name]
        name, text = field.name, f"{field.name} of the config"
        if get_origin(kind) is Literal:
            flags.DEFINE_enum(name, None, list(get_args(kind)), text)
        elif get_origin(kind) is tuple:
            flags.DEFINE_list(name, None, text)
        elif kind is bool:
            flags.DEFINE_bool(name, None, text)
        elif kind is int:
            flags.DEFINE_integer(name, None, text)
        elif kind is float:
            flags.DEFINE_float(name, None, text)
        else:
            flags.DEFINE_string(name, None, text)


def define_mesh_flags() -> None:
    """``--mesh`` and ``--emulate``."""
    flags.DEFINE_string("mesh", "1x1", "data-parallel groups x model shards, such as 2x4")
    flags.DEFINE_bool("emulate", False, "CPU devices, as many as the mesh needs, instead of the "
                      "accelerators of this machine")  # fmt: skip


def define_process_flags() -> None:
    """``--processes``, and the place of this one if the program doesn't start them itself."""
    flags.DEFINE_integer("processes", 1, "in how many the program runs; started here, on this "
                         "machine, if there is no --coordinator", lower_bound=1)  # fmt: skip
    flags.DEFINE_string("coordinator", None, "this is one of the processes: HOST:PORT of process "
                        f"0, or {CLUSTER!r} under Slurm, Kubernetes or Open MPI")  # fmt: skip
    flags.DEFINE_integer("process", None, "which one this is, from 0; not in a cluster")


def with_flags(config: Config) -> Config:
    """The config with the fields replaced that the command line names.

    Raises:
        UserError: nothing would read one of them.
    """
    config = overridden(config)
    check_read([config])
    return config


def check_read(configs: Sequence[Config]) -> None:
    """Flags that none of the configs reads are refused.

    Raises:
        UserError: naming the flag.
    """
    by_name = [unread(config) for config in configs]
    for name, needed in by_name[0].items():
        if FLAGS[name].value is not None and all(name in each for each in by_name):
            raise UserError(f"--{name} has no effect without {needed}")


def overridden(config: Config) -> Config:
    """The config with the fields replaced that the command line names, read or not."""
    given = {}
    for name, kind in FIELD_TYPES.items():
        value = FLAGS[name].value
        if value is not None:
            given[name] = _items(name, value, kind) if get_origin(kind) is tuple else value
    return dataclasses.replace(config, **given)


def _items(name: str, items: Sequence[str], kind: object) -> tuple[object, ...]:
    (item_type, _) = get_args(kind)
    try:
        return tuple(item_type(item) for item in items)
    except ValueError:
        raise UserError(
            f"--{name}: expected {item_type.__name__} values with commas, got {','.join(items)!r}"
        ) from None


def start(mesh: str, processes: int = 1, emulate: bool = False) -> jax.sharding.Mesh:
    """The mesh, and a compilation cache. Without accelerators, its devices are emulated.

    Args:
        mesh: such as ``"2x4"``.
        processes: that it is spread over. If there are several, this is the one that the flags of
            `define_process_flags` say.
        emulate: whether its devices are emulated in any case, as ``--emulate`` says, too.

    Raises:
        UserError: there are accelerators, and fewer than the mesh needs.
    """
    shape = parse_mesh(mesh)
    if emulate or ("emulate" in FLAGS and FLAGS.emulate):
        jax.config.update("jax_platforms", "cpu")
    emulate_devices(shape[0] * shape[1], processes)
    if processes > 1:
        end_with_launcher()
        join(FLAGS.coordinator, processes, FLAGS.process)
        _leave_output_to_first()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    check_accelerators(shape)
    return make_mesh(shape)


def _leave_output_to_first() -> None:
    """Of several processes, only what process 0 prints goes to standard output."""
    sys.stdout.flush()
    shown, hidden = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(hidden, 1)  # in every process, gloo writes a line for each connection it makes
    sys.stdout = os.fdopen(shown if is_process_0() else hidden, "w")


def run(main: Callable[[Sequence[str]], None], argv: list[str] | None = None) -> None:
    """Runs a program: exit code 2 and one message for what the user can mend, no traceback.

    Args:
        main: of the program.
        argv: its name and its flags; None for the process's.
    """
    restart_with_settings()

    def guarded(argv: Sequence[str]) -> None:
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
        # What is half-written goes away when a program is told to end, too.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            if len(argv) > 1:
                raise UserError(f"expected flags only, got {' '.join(argv[1:])!r}")
            main(argv)
            sys.stdout.flush()
        except UserError as error:
            _fail(str(error))
        except BrokenPipeError:  # who reads the output, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _end(128 + signal.SIGPIPE)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            _fail(str(error))
        except Interrupted as request:
            if is_process_0():
                print(
                    f"{request}; everything is saved; the same command with this workdir goes on",
                    file=sys.stderr,
                )
            sys.exit(128 + request.signal)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            _end(130)
        except SystemExit as request:
            _end(request.code)
        except Exception as error:
            if not is_distributed():
                raise
            _fail_among_others(error)

    def parse(argv: list[str]) -> list[str]:
        try:
            return FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            fields = [name for name in FIELD_TYPES if name in FLAGS]  # of a run's, if it has these
            own = sorted({*fields, *_defined_by(argv[0])})
            _fail(f"{error}; the flags are {', '.join(own)}")
        except flags.Error as error:
            _fail(str(error))

    app.run(guarded, argv, flags_parser=parse)


def _defined_by(program: str) -> list[str]:
    module = FLAGS.flags_by_module_dict().get(program, [])
    return [flag.name for flag in module]


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    _end(code)


def _fail_among_others(error: Exception) -> NoReturn:
    """One of several processes can't go on, because of itself or because of another one."""
    # JAX raises ValueError, too, for what gloo tells.
    lost = isinstance(error, RuntimeError | ValueError) and any(x in str(error) for x in _LOST)
    if lost:
        _fail(
            f"{ANOTHER_LOST}, and says why if it has ended: {str(error).splitlines()[0]}. "
            f"Started again with this workdir, all go on from the last checkpoint",
            code=1,
        )
    traceback.print_exception(error)
    _end(1)


def _end(code: int | str | None) -> NoReturn:
    """Ends the program; one of several processes at once, so that the others notice."""
    if is_distributed() and isinstance(code, int):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # otherwise it would wait at its exit for the others, who wait for it
    sys.exit(code)

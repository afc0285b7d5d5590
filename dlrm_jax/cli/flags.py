"""Flags that programs share, rules between flags, and the errors of a command line."""

from __future__ import annotations

import difflib
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dlrm_jax.artifact.manifest import MANIFEST
from dlrm_jax.config import FIELD_TYPES
from dlrm_jax.errors import UserError
from dlrm_jax.presets import PRESETS

FLAGS = flags.FLAGS

_OURS = ("dlrm_jax", "experiments")

_required: set[flags.Flag] = set()


class Numbers(flags.ArgumentParser[tuple[Any, ...]]):
    """A flag's parser that reads ``512,256,1`` as a tuple; for arguments see `define_numbers`."""

    def __init__(
        self, kind: type[int] | type[float], low: int | None, named: Mapping[str, tuple[int, ...]]
    ):
        self._kind, self._low, self._named = kind, low, named
        self.syntactic_help = "integers with commas" if kind is int else "numbers with commas"
        if low is not None:
            self.syntactic_help += f", each at least {low}"
        self.syntactic_help += "".join(f", or {name}" for name in named)

    def parse(self, argument: str | Sequence[Any]) -> tuple[Any, ...]:
        """The numbers; none of an empty text."""
        if isinstance(argument, str) and argument in self._named:
            return self._named[argument]
        items = argument.split(",") if isinstance(argument, str) else argument
        numbers = tuple(self._kind(item) for item in items if items != [""])
        if self._low is not None and not all(number >= self._low for number in numbers):
            raise ValueError(f"expected {self.syntactic_help}")
        return numbers


def define_numbers(
    name: str,
    default: Sequence[int] | Sequence[float] | None,
    text: str,
    kind: type[int] | type[float] = int,
    low: int | None = None,
    named: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """A flag for numbers of a kind with commas, each at least ``low``.

    ``named`` has words that stand for numbers; ``text`` is the sentence for ``--help``.
    """
    serializer: Any = flags.ListSerializer(",")
    flags.DEFINE(Numbers(kind, low, named or {}), name, default, text, serializer=serializer)


def define_mesh() -> None:
    """``--mesh`` and ``--emulate``."""
    flags.DEFINE_string("mesh", "1x1", "Data-parallel groups x model shards; such as 2x4.")
    flags.DEFINE_bool(
        "emulate", False, "Uses emulated CPU devices instead of the accelerators of this machine."
    )


def define_workdir(text: str, such_as: str) -> None:
    """``--workdir``, by default a new directory; the sentence ends with an example."""
    flags.DEFINE_string(
        "workdir", None, f"{text}; without it, a new one in runs/; such as {such_as}."
    )


def chosen_workdir(program: str) -> Path:
    """The directory of `define_workdir`; a new one has the program's name and the time.

    Raises:
        UserError: it is that of an exported model.
    """
    path = Path(FLAGS.workdir or time.strftime(f"runs/{program}-%Y%m%d-%H%M%S"))
    if (path / MANIFEST).exists():
        raise UserError(
            f"--workdir: expected the directory of a run, got {path}, an exported model with a "
            f"{MANIFEST}; give another name"
        )
    return path


def own_flags() -> list[flags.Flag]:
    """The flags of this program in the order of their definition, without those of libraries."""
    return [
        flag
        for module, defined in FLAGS.flags_by_module_dict().items()
        if module.partition(".")[0] in _OURS or module == sys.argv[0]
        for flag in defined
    ]


def example(flag: flags.Flag) -> str | None:
    """The value that a flag's sentence names as an example; None if the type lists the values."""
    found = re.search(r"; such as (.+)\.$", flag.help or "")
    return found and found[1]


def such_as(flag: flags.Flag) -> str:
    """The end of an error message: the flag with its example."""
    value = example(flag)
    return f"; such as --{flag.name}={value}" if value else ""


def parse(argv: Sequence[str]) -> list[str]:
    """Reads a command line into `FLAGS`, and returns what are no flags, with the program's name.

    Raises:
        UserError: a flag is unknown, or its value isn't of its type, not finite or empty;
            a flag for a list is given twice.
    """
    try:
        rest = FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        given = str(error.flagname)
        names = [x.name for x in own_flags()]
        names += [f"no{x.name}" for x in own_flags() if x.boolean]
        raise UserError(f"there is no flag --{given}{nearest(given, names, '--')}") from error
    except flags.IllegalFlagValueError as error:
        found = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL)
        if found is None:
            raise UserError(str(error)) from error
        flag = FLAGS[found[1]]
        raise UserError(
            f"--{flag.name}: expected {_expected(flag)}, got {found[2]!r}{such_as(flag)}"
        ) from error
    except (flags.Error, ValueError) as error:  # such as --noemulate=x
        raise UserError(f"{error}; see --help") from error
    for flag in own_flags():
        values = flag.value if isinstance(flag.value, tuple) else (flag.value,)
        for value in values:
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{flag.name}: expected a finite number, got {value}")
        if flag.present > 1 and isinstance(flag.value, list):
            raise UserError(
                f"--{flag.name} is given {flag.present} times, and only the last one would count; "
                f"give it once, with commas between its values"
            )
        # As a file, an empty text would be the current directory.
        if flag.present and isinstance(flag.value, list | tuple) and "" in flag.value:
            raise UserError(
                f"--{flag.name}: expected values with commas between them, got an empty one in "
                f"{','.join(flag.value)!r}{such_as(flag)}"
            )
        # Such as an unset variable.
        if flag.present and flag.value in ("", [], ()) and not _may_be_emptied(flag):
            raise UserError(f"--{flag.name}: expected a value, got an empty one{such_as(flag)}")
    return rest


def _may_be_emptied(flag: flags.Flag) -> bool:
    """Whether the preset, or a file of settings, has values that an empty flag takes away."""
    if "config" in FLAGS and FLAGS.config:
        return flag.name in FIELD_TYPES
    given = "preset" in FLAGS and flag.name in FIELD_TYPES
    return given and bool(getattr(PRESETS[FLAGS.preset], flag.name))


def named_as_flag(message: str) -> str:
    """The message of an error that begins with a field's name, with the name of its flag."""
    name, _, text = message.partition(":")
    flag = next((flag for flag in own_flags() if flag.name == name), None)
    if flag is None:
        return message
    # Where one value alone is right, or data set the limit, an example may be of a wrong one.
    has_example = re.match(r" expected (?![0-9,]+ (?:for|with) |(?:at most|less than) the )", text)
    return f"--{message}{such_as(flag) if has_example else ''}"


def nearest(given: str, names: Iterable[str], prefix: str = "") -> str:
    """The end of an error message: names that are close to one that is unknown."""
    found = [f"{prefix}{x}" for x in difflib.get_close_matches(given, names)]
    return f"; did you mean {' or '.join(found)}? See --help" if found else "; see --help"


def _expected(flag: flags.Flag) -> str:
    if isinstance(flag.parser, flags.EnumParser):
        return f"one of {', '.join(flag.parser.enum_values)}"
    if flag.boolean:
        return "true or false"
    low = getattr(flag.parser, "lower_bound", None)
    if low is None:
        return flag.parser.syntactic_help
    kind = "an integer" if isinstance(flag.parser, flags.IntegerParser) else "a number"
    high = getattr(flag.parser, "upper_bound", None)
    return f"{kind} of at least {low}" if high is None else f"{kind} from {low} to {high}"


def paths(name: str) -> list[Path]:
    """The files that a flag names with commas between them; one with a comma is in double quotes.

    Raises:
        UserError: there is no such file.
    """
    given = [Path(path) for path in FLAGS[name].value or ()]
    for path in given:
        if not path.exists():
            hint = "; a path with a comma is given in double quotes" if len(given) > 1 else ""
            raise UserError(f"--{name}: there is no {path}{hint}")
    return given


# -- Rules between flags; each raises a UserError ----------------------------------------


def refuse(names: Iterable[str], why: str) -> None:
    """Refuses flags that nothing would read; ``why`` ends the sentence: "without --eval_only"."""
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name} has no effect{why if why[0] == ':' else f' {why}'}")


def refuse_unless(given: object, needed: str, *names: str) -> None:
    """Refuses flags that nothing would read unless another one, ``needed``, is given."""
    if not given:
        refuse(names, f"without {needed}")


def require(*names: str) -> None:
    """Refuses a command line in which one of these flags has no value."""
    for name in names:
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing{such_as(FLAGS[name])}")


def mark_required(*names: str) -> None:
    """Makes ``--help`` say of flags that `require` will ask for them in any case."""
    _required.update(FLAGS[name] for name in names)


def is_required(flag: flags.Flag) -> bool:
    """Whether `mark_required` has named a flag."""
    return flag in _required

"""The text of ``--help``: the docstring of a program, and a sentence for each of its flags."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from absl import flags

from dlrm_jax.cli.config_flags import NO_EFFECT
from dlrm_jax.cli.flags import FLAGS, is_required, own_flags
from dlrm_jax.config import FIELD_TYPES
from dlrm_jax.presets import PRESETS

# Titles of the config's sections, by the first field of each.
_SECTIONS = {
    "features": "Tables",
    "model": "Model",
    "loss": "Optimization",
    "batch_size": "Run",
    "examples": "Data",
}
_INDENT = 26  # of the sentences
_RECIPE = "ctr_x1_"
_MOST_VALUES = 6  # that are shown of a default


def help_text(docstring: str, width: int | None = None) -> str:
    """The docstring and all flags of this program.

    Lines have at most ``width`` characters; None for the terminal's, at most 100, or 80 without
    one.
    """
    width = width or max(40, min(100, shutil.get_terminal_size((80, 24)).columns))
    own = [flag for flag in own_flags() if not (flag.help or "").startswith(NO_EFFECT)]
    of_config = _is_of_config()  # otherwise a flag may be called like a field
    first = [flag for flag in own if not of_config or flag.name not in FIELD_TYPES]
    sections: dict[str, list[flags.Flag]] = {"Flags": first}
    title = ""
    for name in FIELD_TYPES:
        title = _SECTIONS.get(name, title)
        sections.setdefault(title, []).extend(x for x in own if x not in first and x.name == name)
    lines = list(_paragraphs(docstring.replace("`", ""), width))
    for title, members in sections.items():
        if members:
            lines += ["", f"{title}:", *(x for flag in members for x in _entry(flag, width))]
    last = "Shows this text; --helpfull also shows the flags of libraries."
    lines += ["", *_wrapped("  --help", last, width)]
    return "\n".join(lines)


def _paragraphs(docstring: str, width: int) -> Iterator[str]:
    """A docstring's lines, with paragraphs filled and command lines continued with backslashes."""
    for number, paragraph in enumerate(inspect.cleandoc(docstring).split("\n\n")):
        if number:
            yield ""
        if paragraph.startswith(" "):
            for line in paragraph.replace("\\\n", "").splitlines():
                words = " ".join(line.split())
                filled = _fill(words, width - 2, "    ", "        ")
                yield from (f"{each} \\" for each in filled[:-1])
                yield filled[-1]
        else:
            yield from _fill(" ".join(paragraph.split()), width)


def _entry(flag: flags.Flag, width: int) -> list[str]:
    name = f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}"
    text = (flag.help or "").replace("`", "")
    if isinstance(flag.parser, flags.EnumParser):
        values = flag.parser.enum_values
        text = text.removeprefix(f"<{'|'.join(values)}>: ")  # which absl adds
        text += f" One of {', '.join(values)}."
    end = "Required." if is_required(flag) else f"Default: {_default(flag)}."
    if flag.default is None and re.search(r"\b[Ww]ithout it\b", text):
        end = ""  # the sentence says it
    return _wrapped(name, f"{text} {end}".rstrip(), width)


def _default(flag: flags.Flag) -> str:
    """The default, of other presets where it differs, too."""
    if flag.default is not None or flag.name not in FIELD_TYPES or not _is_of_config():
        return _shown(flag.default)
    own = str(FLAGS["preset"].default)
    presets: dict[str, list[str]] = {_shown(getattr(PRESETS[own], flag.name)): [own]}
    for name, config in PRESETS.items():
        presets.setdefault(_shown(getattr(config, flag.name)), []).append(name)
    first, *others = presets
    return "; ".join([first, *(f"{value} in {_named(presets[value])}" for value in others)])


def _is_of_config() -> bool:
    """Whether the program's presets are those of `Config`; an experiment may have its own."""
    parser = FLAGS["preset"].parser if "preset" in FLAGS else None
    return isinstance(parser, flags.EnumParser) and set(parser.enum_values) == set(PRESETS)


def _named(presets: list[str]) -> str:
    """The names of presets; those of all models of one recipe together."""
    recipe = [name for name in PRESETS if name.startswith(_RECIPE)]
    if set(recipe) <= set(presets):
        presets = [name for name in presets if name not in recipe] + [f"{_RECIPE}*"]
    return ", ".join(presets)


def _shown(value: Any) -> str:
    if value in (None, "", (), []):
        return "none"
    if isinstance(value, list | tuple):
        if len(value) <= _MOST_VALUES:
            return ",".join(map(str, value))
        return f"{len(value)} {'names' if isinstance(value[0], str) else 'numbers'}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wrapped(name: str, text: str, width: int) -> list[str]:
    """A name, and beside it a text; below it, if the name is long."""
    lines = _fill(text, width, " " * _INDENT)
    if len(name) > _INDENT - 2:
        return [name, *lines]
    return [name.ljust(_INDENT) + lines[0].lstrip(), *lines[1:]]


def _fill(text: str, width: int, first: str = "", others: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=first if others is None else others,
        break_on_hyphens=False,
    )  # fmt: skip

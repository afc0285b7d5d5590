"""The pages of the documentation, and what they show: code, commands, links, headings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "BUILD.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[tuple[str, str]]:
    """The language, or none, and the content of each fenced block."""
    return _FENCE.findall(text)


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text)


def program(text: str) -> tuple[dict[str, str], str, list[str]]:
    """The Python blocks of a page.

    Returns:
        files that blocks whose first line names one stand for; all other blocks as one program; and
        what the page says that the program prints: comments behind or below a print, and blocks of
        text behind it.
    """
    files, code, promised = {}, "", []
    for language, block in blocks(text):
        named = re.match(r"# (\w+\.py)\b", block)
        if language == "python" and named:
            files[named[1]] = block
        elif language == "python":
            code += block
            promised += re.findall(r"^(?:print\(.*\)  )?# (.*)$", block, re.MULTILINE)
        elif language == "text" and code:
            promised += block.splitlines()
    return files, code, promised


def shown(text: str) -> list[str]:
    """The lines of a page that may hold commands: of blocks without Python, and inline code."""
    lines = []
    for language, block in blocks(text):
        if language in ("", "sh", "text"):
            lines += block.splitlines()
    return lines + [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Module and arguments of each ``python -m`` of a page; a command of dlrm_jax is part of it."""
    found = []
    for line in shown(text):
        for part in re.findall(r"python3? -m (.*?)(?:$| && | # | &$)", line):
            module, *arguments = shlex.split(part, comments=True)
            if module == "dlrm_jax" and arguments and not arguments[0].startswith("-"):
                module = f"{module} {arguments.pop(0)}"
            found.append((module, arguments))
    return found


def flags(text: str) -> set[str]:
    """The names of all flags that stand in a page's code, those of other programs' too."""
    spans = re.findall(r"(?:^|[\s,;])--(\w+)", "\n".join(shown(text)))
    return set(spans)


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures that aren't elsewhere on the web."""
    return [
        target
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(text))
        if not target.startswith(("http://", "https://"))
    ]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = path.read_text()
    included = re.findall(r'^--8<-- "(.*)"$', text, re.MULTILINE)
    text += "".join((ROOT / name).read_text() for name in included)
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}

"""HTML pages of headings, texts, tables and pictures; each is one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing
from dlrm_jax.workspaces import workspace

_BEGIN = 200  # bytes
_OURS = '<meta name="generator" content="dlrm_jax">'

_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{ ours | safe }}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { margin: 2.5rem auto 4rem; max-width: 58rem; padding: 0 1.5rem; background: #fff;
  color: #222; font: 16px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; font-weight: 600; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.8rem 0 .3rem; }
h1, p, .text { overflow-wrap: break-word; }
p { margin: .3rem 0 .8rem; max-width: 44rem; }
img { display: block; max-width: 100%; height: auto; margin: .8rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.35; margin: .8rem 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .16rem 0 .16rem .9rem; text-align: right; vertical-align: top;
  white-space: nowrap; }
th { font-weight: 500; color: #555; vertical-align: bottom; }
thead th { border-bottom: 1px solid #999; max-width: 5.5rem; white-space: normal;
  overflow-wrap: break-word; }
tfoot td { border-top: 1px solid #999; font-weight: 600; }
.text { text-align: left; white-space: normal; }
.facts .text + .text { overflow-wrap: anywhere; }
summary { cursor: pointer; font-size: .9rem; margin: .8rem 0; }
th:first-child, td:first-child { padding-left: 0; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for kind, part in parts %}
{% if kind == "heading" %}
<h2>{{ part }}</h2>
{% elif kind == "text" %}
<p>{{ part }}</p>
{% elif kind == "picture" %}
<img alt="{{ part.alt }}" src="data:image/svg+xml;base64,{{ part.svg }}">
{% elif kind == "table" %}
{% macro cells(tag, row) %}
<tr>{% for cell in row %}<{{ tag }}{% if loop.index0 < part.texts %} class="text"{% endif %}>
{{- cell }}</{{ tag }}>{% endfor %}</tr>
{% endmacro %}
{% if part.folded %}
<details><summary>{{ part.folded }}</summary>
{% endif %}
<div class="wide"><table{% if not part.header %} class="facts"{% endif %}>
{% if part.header %}
<thead>
{{ cells("th", part.header) -}}
</thead>
{% endif %}
<tbody>
{% for row in part.rows %}
{{ cells("td", row) -}}
{% endfor %}
</tbody>
{% if part.totals %}
<tfoot>
{{ cells("td", part.totals) -}}
</tfoot>
{% endif %}
</table></div>
{% if part.folded %}
</details>
{% endif %}
{% endif %}
{% endfor %}
</body>
</html>
"""
)


class Page:
    """A page that is written from top to bottom; whatever it is given is text, never markup."""

    def __init__(self, title: str):
        self._title = title
        self._parts: list[tuple[str, Any]] = []

    def heading(self, text: str) -> None:
        """Begins a section."""
        self._parts.append(("heading", text))

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(("text", text))

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        totals: Sequence[str] = (),
        texts: int = 1,
        folded: str = "",
    ) -> None:
        """A table, with a last row of totals; its first columns, ``texts``, are flush left.

        Without a header it is one of facts, whose second column may be long. If it is ``folded``,
        it shows this text, and all its rows at a click.
        """
        part = {"header": header, "rows": rows, "totals": totals, "texts": texts, "folded": folded}
        self._parts.append(("table", part))

    def picture(self, figure: Figure, alt: str) -> None:
        """A picture, with a text for those who can't see it."""
        file = io.BytesIO()
        settings: dict[Any, Any] = {
            "svg.fonttype": "none",  # real text, in the reader's fonts
            "svg.hashsalt": "page",  # the same page from the same data
            "font.sans-serif": ["system-ui", "Helvetica Neue", "Arial", "DejaVu Sans"],
        }
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            # The reader's fonts may well have it; here it's only measured.
            warnings.filterwarnings("ignore", r"Glyph .* missing from font")
            figure.savefig(file, format="svg", metadata={"Date": None})
        svg = base64.b64encode(file.getvalue()).decode()
        self._parts.append(("picture", {"alt": alt, "svg": svg}))

    def write(self, path: Path) -> None:
        """Writes or replaces a file in one step."""
        with replacing(path) as temporary:
            text = _TEMPLATE.render(title=self._title, parts=self._parts, ours=_OURS)
            # Half a character, as JSON may have it, is shown as its number.
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_own(path: Path) -> None:
    """Checks that `Page.write` would replace nothing but an earlier page of this program.

    Raises:
        UserError: something else has this name.
    """
    check_file(path)
    if path.exists() and not _is_page(path):
        raise UserError(f"{path} exists, and this program didn't make it; move it or rename it")


def check_writable(path: Path) -> None:
    """Checks that a report can be written, before the time that it takes; makes its directory.

    Raises:
        UserError: it can't.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with workspace(path):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; give a directory that you can write to as "
            f"--output"
        ) from error


def check_file(path: Path) -> None:
    """Checks that there is a file, or nothing.

    Raises:
        UserError: there is a directory.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a directory; expected an earlier report, or nothing; move it or rename it"
        )


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return _OURS.encode() in file.read(_BEGIN)

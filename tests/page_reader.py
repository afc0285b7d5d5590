"""An HTML page as a reader's program sees it."""

import base64
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "img"}
SVG = "{http://www.w3.org/2000/svg}"


class Reader(HTMLParser):
    """Collects what a page holds, and checks that its elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.rows, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data


def read(path):
    """The elements of a page, and by picture its texts."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    pictures = []
    for name, value in reader.attributes:
        assert name not in ("href", "onload")
        if name == "src":
            kind, content = value.split(",")
            assert kind == "data:image/svg+xml;base64"
            picture = ElementTree.fromstring(base64.b64decode(content))
            pictures.append(["".join(text.itertext()) for text in picture.iter(f"{SVG}text")])
    assert "url(" not in path.read_text(encoding="utf-8")
    return reader, pictures

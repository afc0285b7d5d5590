"""Files changed at random: bytes, lines, fields, JSON values and headers of .npy files."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]
"""A function from the content of a file to another one."""

_MOST_BYTES = 1 << 20  # of a mutated file that wasn't larger

ODD_TEXTS = (
    "", " ", "NaN", "nan", "inf", "1e999", "-1e-999", "-1", "-0", "+1", "0.5", "1_000", "١٢",
    "2", "0x10",
    str(2**31), str(2**32 + 5), str(2**63), str(-(2**63) - 1), "9" * 400, "null", "NA", "None",
    "true", "é", "🂡" * 3, "a\u0300", "\u202e", '"', '""', "'", "a,b", "a\tb", "\\", "\x00",
    "../x", "/proc/nope", "a" * 70000, "%s", "{0}", "<b>&amp;", "1970-01-01", "9999-99-99",
    "ffffffff", "[1]", "_",
)  # fmt: skip
"""What may stand in place of a field."""

_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63,
    10**400, "", "x",
    "../x", "1", "\ud800", "é\x00", [], [1], [[]], [None], [1, "x"], {}, {"x": 1}, {"": []},
    "a" * 70000,
)  # fmt: skip
_DTYPES = ("'|O'", "'<U3'", "'>f4'", "'<f8'", "'<i8'", "'<u4'", "'|b1'", "'<c8'", "'|V4'",
           "'<M8[s]'", "'<f2'",
           "'x'", "[('a', '<i4')]", "'<i4'", "'<f4'", "None", "7")  # fmt: skip
_SHAPES = ("()", "(0,)", "(-1, 2)", "(1, 1)", "(60,)", "(60, 0)", "(999999999999, 2)",
           f"({2**63}, 1)", "(2, 3, 4)",
           "'x'", "(1.5,)", "(True, 1)")  # fmt: skip


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """Flips, cuts, repeats, inserts or overwrites some bytes, one to four times."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        start = chance.randint(0, len(data))
        end = min(len(data), start + chance.choice((1, 2, 4, 8, 50, len(data))))
        match chance.randrange(8):
            case 0 | 1 if start < len(data):
                data[start] ^= 1 << chance.randrange(8)
            case 2:
                del data[start:]
            case 3:
                del data[start:end]
            case 4:
                data[start:start] = data[start:end] * chance.choice((1, 2, 30))
            case 5:
                data[start:start] = chance.randbytes(chance.choice((1, 3, 100)))
            case 6:
                data[start:end] = bytes([chance.choice((0, 255, 10, 48))]) * (end - start)
            case _:
                number = chance.choice((-1, 0, 2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1))
                size = chance.choice((4, 8))
                raw = (number % 2 ** (8 * size)).to_bytes(size, "little")
                data[start : start + size] = raw
    return bytes(data[: max(_MOST_BYTES, len(content))])


def mutate_lines(separator: str) -> Mutation:
    """The mutation of a text file with one separator between the fields of a line."""

    def mutate(content: bytes, chance: random.Random) -> bytes:
        lines = content.split(b"\n")
        split = separator.encode()
        for _ in range(chance.choice((1, 1, 2, 5))):
            place, other = chance.randrange(len(lines)), chance.randrange(len(lines))
            if chance.random() < 0.3:  # the header, if there is one
                place = 0
            fields = lines[place].split(split)
            field = chance.randrange(len(fields))
            match chance.randrange(12):
                case 0:
                    lines[place], lines[other] = lines[other], lines[place]
                case 1:
                    lines.insert(place, lines[other])
                case 2 if len(lines) > 1:
                    del lines[place]
                case 3:
                    del fields[field]
                    lines[place] = split.join(fields)
                case 4:
                    fields.insert(field, fields[-1])
                    lines[place] = split.join(fields)
                case 5:
                    lines[place] += chance.choice((b"\r", b"\x00", b"\xff\xfe", b"\n\n", split))
                case 6:
                    content = b"\xef\xbb\xbf"
                    lines[0] = content + lines[0]
                case _:
                    fields[field] = chance.choice(ODD_TEXTS).encode()
                    lines[place] = split.join(fields)
        return b"\n".join(lines)

    return mutate


def mutate_json(content: bytes, chance: random.Random) -> bytes:
    """Replaces, removes, repeats or nests some values of a JSON document."""
    tree = {"": json.loads(content)}
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        holder, key = chance.choice(list(_places(tree)))
        value = holder[key]
        match chance.randrange(10):
            case 0 if key != "":
                del holder[key]
            case 1:
                holder[key] = [value]
            case 2:
                holder[key] = {"x": value}
            case 3 if isinstance(value, list) and value:
                value.extend(value[: chance.randint(1, len(value))])
            case 4 if isinstance(value, dict):
                value[chance.choice(("x", "", "format", "label"))] = copy.deepcopy(
                    chance.choice(_ODD_VALUES)
                )
            case 5 if isinstance(value, int):
                holder[key] = value + chance.choice((-1, 1, 1000))
            case 6 if isinstance(value, int | float | bool):
                holder[key] = str(value)
            case _:
                holder[key] = copy.deepcopy(chance.choice(_ODD_VALUES))
    text = json.dumps(tree[""])
    if chance.random() < 0.05:
        depth = chance.choice((500, 100_000))
        text = re.sub(r"\d+|null|\"\w*\"", "[" * depth + "]" * depth, text, count=1)
    return text.encode()


def _places(tree: Any) -> Any:
    """Each holder of a value, with the key or the index of the value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def mutate_npy(content: bytes, chance: random.Random) -> bytes:
    """Replaces the dtype, the shape or the order in the header of an .npy file."""
    end = 10 + int.from_bytes(content[8:10], "little")
    header = content[10:end].decode("latin-1")
    pattern, values = chance.choice(
        (
            (r"'descr': '[^']*'", tuple(f"'descr': {x}" for x in _DTYPES)),
            (r"'shape': \([^)]*\)", tuple(f"'shape': {x}" for x in _SHAPES)),
            (r"False", ("True", "0", "None")),
            (r"'descr'", ("'x'",)),
        )
    )
    value = chance.choice(values)
    header = re.sub(pattern, lambda _: value, header, count=1).rstrip() + "\n"
    raw = header.encode("latin-1")
    return content[:8] + len(raw).to_bytes(2, "little") + raw + content[end:]


def one_of(*mutations: Mutation) -> Mutation:
    """The mutation that is one of these by chance."""
    return lambda content, chance: chance.choice(mutations)(content, chance)

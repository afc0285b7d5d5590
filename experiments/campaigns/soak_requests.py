"""Requests whose answers are known for each version of a model, and spoiled ones."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.rows import NAME, as_frame
from examples.own_log import make_log
from experiments.benchmarks.peers.workers.http_bodies import FORMS, post
from experiments.campaigns.mutations import mutate_bytes, mutate_json
from experiments.campaigns.served_versions import close

_MOST_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Request:
    """A good request.

    Attributes:
        content: HTTP request, head and body.
        expected: probabilities by artifact.
        read: function of the body of an answer that gives the version, None if it doesn't say, and
            the probabilities.
    """

    content: bytes
    expected: Sequence[np.ndarray]
    read: Callable[[bytes], tuple[int | None, np.ndarray]]

    def problem(self, status: int, body: bytes, artifact_of: Callable[[int], int]) -> str:
        """What is wrong with an answer; empty if nothing is."""
        if status != 200:
            return f"status {status}: {body[:200]!r}"
        version, found = self.read(body)
        good = self.expected if version is None else [self.expected[artifact_of(version)]]
        if any(close(found, expected) for expected in good):
            return ""
        return f"version {version}: expected one of {good}, got {found}"


def good_requests(artifacts: Sequence[Path], count: int, seed: int) -> list[Request]:
    """Requests of one to eight rows: raw rows, and the protocol as JSON and in binary.

    Args:
        artifacts: artifacts, which have the same columns.
        count: number of requests.
        seed: seed of the rows.
    """
    predictors = [Predictor.load(x) for x in artifacts]
    encoder = predictors[0].encoder
    rows = make_log(_MOST_ROWS * count, seed + 7).select(encoder.columns).to_dicts()
    chance = random.Random(seed)
    found = []
    for i in range(count):
        some = rows[i * _MOST_ROWS :][: chance.randint(1, _MOST_ROWS)]
        expected = [x.predict(some) for x in predictors]
        if i % 3 == 0:
            body = json.dumps({"rows": some}).encode()
            found.append(Request(http_post("/predict", body), expected, _of_rows))
            continue
        frame = as_frame(some, encoder.columns, encoder.options.schema.dense)
        examples = encoder.rows(frame, NAME)
        form = ("json", "binary")[i % 3 - 1]
        content = post(form, examples.dense, np.asarray(examples.ids))
        found.append(Request(content, expected, _reader(form)))
    return found


def http_post(path: str, body: bytes, *headers: str) -> bytes:
    """A whole HTTP request."""
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def malformed(request: Request, chance: random.Random) -> bytes:
    """A request whose body was changed by chance; its Content-Length is right."""
    head, _, body = request.content.partition(b"\r\n\r\n")
    path, *headers = head.decode().split("\r\n")
    kept = [x for x in headers if not x.startswith(("Content-Length", "Host"))]
    is_json = body.endswith(b"}")
    if is_json and chance.random() < 0.6:
        body = mutate_json(body, chance)
    else:
        body = mutate_bytes(body, chance)
    kept = [x if chance.random() < 0.8 else _other_number(x, chance) for x in kept]
    return http_post(path.split()[1], body, *kept)


def _other_number(header: str, chance: random.Random) -> str:
    name, _, value = header.partition(": ")
    odd = ("-1", "0", "999999999999", "x", "", value + "0")
    return f"{name}: {chance.choice(odd)}" if value.isdecimal() else header


def _of_rows(body: bytes) -> tuple[None, np.ndarray]:
    return None, np.array(msgspec.json.decode(body)["predictions"])


def _reader(form: str) -> Callable[[bytes], tuple[int, np.ndarray]]:
    def read(body: bytes) -> tuple[int, np.ndarray]:
        _, _, rest = body.partition(b'"model_version":"')
        version = rest.partition(b'"')[0]
        if not version.isdigit():
            raise UserError(f"expected the version of the model, got {body[:200]!r}")
        return int(version), FORMS[form].read(body)

    return read

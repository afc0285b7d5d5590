"""Bodies of requests for predictions of examples with ids, and of their answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np

MODEL = "benchmark"
"""The name of the model in paths."""


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of requests and answers.

    Attributes:
        path: path that is asked.
        write: function of dense features and ids that gives the body, and the bytes of its JSON if
            tensors follow it.
        read: function of an answer's body that gives the probabilities.
    """

    path: str
    write: Callable[[np.ndarray, np.ndarray], tuple[bytes, int | None]]
    read: Callable[[bytes], np.ndarray]


def _fastapi(dense: np.ndarray, ids: np.ndarray) -> tuple[bytes, None]:
    return _json({"dense": dense.tolist(), "ids": ids.tolist()}), None


def _open_inference(dense: np.ndarray, ids: np.ndarray) -> tuple[bytes, None]:
    data = [{"data": dense.ravel().tolist()}, {"data": ids.ravel().tolist()}]
    return _json({"inputs": _inputs(dense, ids, data)}), None


def _binary(dense: np.ndarray, ids: np.ndarray) -> tuple[bytes, int]:
    tensors = dense.astype("<f4").tobytes(), ids.astype("<i4").tobytes()
    data = [{"parameters": {"binary_data_size": len(x)}} for x in tensors]
    parameters = {"binary_data_output": True}
    head = _json({"inputs": _inputs(dense, ids, data), "parameters": parameters})
    return b"".join([head, *tensors]), len(head)


def _inputs(dense: np.ndarray, ids: np.ndarray, data: list[dict]) -> list[dict]:
    return [
        {"name": "dense", "datatype": "FP32", "shape": list(dense.shape), **data[0]},
        {"name": "ids", "datatype": "INT32", "shape": list(ids.shape), **data[1]},
    ]


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


_INFER = f"/v2/models/{MODEL}/infer"
FORMS = {
    "fastapi": Form("/predict", _fastapi, lambda x: np.array(json.loads(x)["predictions"])),
    "json": Form(_INFER, _open_inference, lambda x: np.array(json.loads(x)["outputs"][0]["data"])),
    "binary": Form(_INFER, _binary, lambda x: np.frombuffer(x[x.rindex(b"}]}") + 3 :], "<f8")),
}
"""FastAPI's rows, and the Open Inference Protocol as JSON and with tensors in binary."""


def post(form: str, dense: np.ndarray, ids: np.ndarray) -> bytes:
    """A whole HTTP request."""
    body, length = FORMS[form].write(dense, ids)
    head = [
        f"POST {FORMS[form].path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {'application/json' if length is None else 'application/octet-stream'}",
        f"Content-Length: {len(body)}",
    ]
    if length is not None:
        head.append(f"Inference-Header-Content-Length: {length}")
    return "\r\n".join([*head, "", ""]).encode() + body

"""Files of safetensors, written tensor by tensor: their header comes first, and says all places.

https://github.com/huggingface/safetensors describes the format. Its own library takes all tensors
at a time.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

_ALIGNED = 8  # bytes that the header's length is a multiple of


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[tuple[str, Float32[np.ndarray, "*_"]]],
    metadata: Mapping[str, str],
) -> None:
    """Writes float32 tensors, the bytes that the library writes.

    Args:
        path: file to make.
        shapes: shape of each tensor by name.
        tensors: all of them with their names, in any order; one is in memory.
        metadata: texts by key.
    """
    names = sorted(shapes)
    sizes = [4 * math.prod(shapes[name]) for name in names]
    ends = [0, *itertools.accumulate(sizes)]
    places = dict(zip(names, itertools.pairwise(ends), strict=True))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} | {
        name: {"dtype": "F32", "shape": [*shapes[name]], "data_offsets": [*place]}
        for name, place in places.items()
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    missing = set(names)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        first = file.tell()
        for name, array in tensors:
            assert array.shape == tuple(shapes[name]), name
            file.seek(first + places[name][0])
            file.write(np.ascontiguousarray(array, "<f4").data)
            missing.remove(name)
    assert not missing, missing

"""FBGEMM's operator for inference on a CPU, with tables of stored rows in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)

_TYPES = {"float32": SparseType.FP32, "int8": SparseType.INT8, "int4": SparseType.INT4}


class StoredRows(NamedTuple):
    """A table as a file.

    Attributes:
        path: file of the rows.
        rows: number of rows.
        dim: numbers of a row.
        row_format: format of the rows.
    """

    path: Path
    rows: int
    dim: int
    row_format: str


def stored_operator(tables: Sequence[StoredRows]) -> IntNBitTableBatchedEmbeddingBagsCodegen:
    """The operator, which doesn't check indices."""
    operator = IntNBitTableBatchedEmbeddingBagsCodegen(
        [
            (str(i), table.rows, table.dim, _TYPES[table.row_format], EmbeddingLocation.HOST)
            for i, table in enumerate(tables)
        ],
        pooling_mode=PoolingMode.SUM,
        bounds_check_mode=BoundsCheckMode.NONE,
        output_dtype=SparseType.FP32,
        device="cpu",
    )
    operator.initialize_weights()
    weights = operator.split_embedding_weights(split_scale_shifts=False)
    for (to, _), table in zip(weights, tables, strict=True):
        shape = (table.rows, to.shape[1])
        to.numpy()[...] = np.memmap(table.path, np.uint8, "r", shape=shape)
    return operator

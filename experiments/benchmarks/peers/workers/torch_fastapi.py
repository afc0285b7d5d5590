"""A minimal FastAPI server around FBGEMM's operator: what one writes in ten lines.

    python -m experiments.benchmarks.peers.workers.torch_fastapi --artifact=DIR --port=PORT

A request is a call of the model, on the thread of the event loop: threads of the pool would only
wait for each other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from experiments.benchmarks.peers.workers.protocol import end_with_parent
from experiments.benchmarks.peers.workers.torch_artifact import Model


class Rows(BaseModel):
    """Rows of a request."""

    dense: list[list[float]]
    ids: list[list[int]]


class Predictions(BaseModel):
    """Their probabilities."""

    predictions: list[float]


def application(model: Model) -> FastAPI:
    """The application."""
    app = FastAPI()

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/predict")
    async def predict(rows: Rows) -> Predictions:
        found = model(np.array(rows.dense, np.float32), np.array(rows.ids, np.int32))
        return Predictions(predictions=found.tolist())

    return app


def _main() -> None:
    end_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--part", default="fastest")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1])
    given = parser.parse_args()
    model = Model(given.artifact, given.part)
    model.warm_up(given.sizes)
    uvicorn.run(application(model), port=given.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    _main()

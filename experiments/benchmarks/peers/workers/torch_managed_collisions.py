"""TorchRec's managed collisions on a CPU, for `benchmarks.id_map`.

Requests are ``{"do": "build", "rows": …, "interval": batches, "evict": policy}`` and any number of
``{"do": "run", "ids": path, "batch": N}``, whose answer has the seconds, and the share of the ids
that had a row, which is counted outside of them.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from experiments.benchmarks.peers.workers.protocol import end_with_parent, only_for_answers

_POLICIES = {
    "lru": LRU_EvictionPolicy,
    "lfu": LFU_EvictionPolicy,
    "distance_lfu": DistanceLFU_EvictionPolicy,
}


def run(module: MCHManagedCollisionModule, ids: np.ndarray, size: int) -> dict[str, Any]:
    """Rows of all ids, batch by batch."""
    batches = [torch.from_numpy(ids[i : i + size].copy()) for i in range(0, len(ids), size)]
    given = [
        {"ids": JaggedTensor(values=x, lengths=torch.ones(len(x), dtype=torch.int32))}
        for x in batches
    ]
    begun, processor_begun = time.perf_counter(), time.process_time()
    found = [module(x) for x in given]
    seconds = time.perf_counter() - begun
    processor_seconds = time.process_time() - processor_begun
    none = module._zch_size - 1
    rows = sum(int((x["ids"].values() != none).sum()) for x in found)
    share = rows / len(ids)
    return {"seconds": seconds, "processor_seconds": processor_seconds, "share": share}


def _serve() -> None:
    end_with_parent()
    answers = only_for_answers()
    module: MCHManagedCollisionModule
    with torch.no_grad():
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "build":
                module = MCHManagedCollisionModule(
                    zch_size=request["rows"],
                    device=torch.device("cpu"),
                    eviction_policy=_POLICIES[request["evict"]](),
                    eviction_interval=request["interval"],
                )
                module.train()
                answer = {x: importlib.metadata.version(x) for x in ("torch", "torchrec")}
            else:
                answer = run(module, np.load(request["ids"]), request["batch"])
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()

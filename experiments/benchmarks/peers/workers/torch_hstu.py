"""HSTU's layer in PyTorch, for `benchmarks.hstu_layer`.

    python -m experiments.benchmarks.peers.workers.torch_hstu --form=research --how=eager

The formulas are those of the reference, ``generative-recommenders``. ``research`` has the products
of ``SequentialTransductionUnitJagged``, ``ops`` those of ``pytorch_hstu_mha``. Both fill sequences
up to the longest one and multiply all pairs; both have the bias of
``RelativeBucketedTimeAndPositionBasedBias`` here. The mask is made beforehand.
"""

from __future__ import annotations

import argparse
import functools
import os
from typing import Any

import fbgemm_gpu  # noqa: F401 (registers the operators)
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.benchmarks.hstu_problem import EPSILON, OCTAVE, TIME_BUCKETS, Case, parameters
from experiments.benchmarks.peers.workers.layer_protocol import serve
from experiments.benchmarks.peers.workers.torch_linear import onednn_product


class TorchLayer:
    """A layer of a form, run eagerly or compiled."""

    def __init__(self, form: str, how: str, case: Case, arrays: dict[str, np.ndarray]):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._form, self._case = form, case
        self._multiply = onednn_product if how == "onednn" else torch.mm
        self._given = {
            k: torch.from_numpy(v).requires_grad_(case.train) for k, v in parameters(arrays).items()
        }
        self._cotangent = torch.from_numpy(arrays["cotangent"])
        lengths = torch.from_numpy(arrays["lengths"].astype(np.int64))
        self._offsets = functional.pad(lengths.cumsum(0), (1, 0))
        self._mask = torch.tril(torch.ones(case.length, case.length))
        # The last time again behind the sequence, as the reference has it.
        times = np.zeros((len(lengths), case.length + 1), np.int64)
        for row, own in zip(times, np.split(arrays["times"], self._offsets[1:-1]), strict=True):
            row[: len(own)], row[len(own) :] = own, own[-1]
        self._times = torch.from_numpy(times)
        self._layer = (
            torch.compile(self._forward, dynamic=False) if how == "compiled" else self._forward
        )

    def _padded(self, x: Tensor) -> Tensor:
        """[B, longest length, H, width of a head]."""
        found = torch.ops.fbgemm.jagged_to_padded_dense(
            x, [self._offsets], [self._case.length], 0.0
        )
        return found.view(len(found), self._case.length, self._case.heads, -1)

    def _bias(self, given: dict[str, Tensor]) -> Tensor:
        """[1 or B, longest length, longest length]."""
        n, by_distance = self._case.length, given["by_distance"]
        weights = torch.cat([by_distance.flip(0), by_distance.new_zeros(n - 1)])  # none ahead
        rows = functional.pad(weights, [0, n]).repeat(n)[:-n].reshape(1, n, 3 * n - 2)
        found = rows[:, :, n - 1 : 1 - n]
        if not self._case.timed:
            return found
        apart = self._times[:, 1:].unsqueeze(2) - self._times[:, :-1].unsqueeze(1)
        buckets = (torch.log(torch.abs(apart).clamp(min=1)) / OCTAVE).long()
        buckets = torch.clamp(buckets, min=0, max=TIME_BUCKETS).detach().view(-1)
        return found + torch.index_select(given["by_time"], 0, buckets).view(-1, n, n)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        query, key, value = map(self._padded, (query, key, value))
        if self._form == "research":
            scores = torch.einsum("bnhd,bmhd->bhnm", query, key) + bias.unsqueeze(1)
            weights = functional.silu(scores) / self._case.length * self._mask
            return torch.einsum("bhnm,bmhd->bnhd", weights, value).flatten(2, 3)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        scores = torch.einsum("bhxa,bhya->bhxy", query, key) + bias.unsqueeze(1)
        weights = functional.silu(scores) / self._case.length * self._mask
        return torch.einsum("bhxd,bhdv->bhxv", weights, value).transpose(1, 2).flatten(2, 3)

    def _forward(self, given: dict[str, Tensor]) -> Tensor:
        x, width = given["x"], self._case.width
        normed = functional.layer_norm(x, (width,), eps=EPSILON)
        together = functional.silu(self._multiply(normed, given["uvqk"]))
        u, value, query, key = torch.split(together, [width] * 4, dim=1)
        padded = self._attend(query, key, value, self._bias(given))
        attended = torch.ops.fbgemm.dense_to_jagged(padded, [self._offsets], len(x))[0]
        gated = u * functional.layer_norm(attended, (width,), eps=EPSILON)
        return self._multiply(gated, given["output"]) + given["output_bias"] + x

    def step(self) -> Any:
        """Computes all results."""
        if self._case.train:
            out = self._layer(self._given)
            return torch.autograd.grad(out, list(self._given.values()), self._cotangent)
        with torch.inference_mode():
            return self._layer(self._given)

    def results(self) -> dict[str, np.ndarray]:
        """The results."""
        found = self.step()
        if not self._case.train:
            return {"out": found.numpy()}
        return {k: v.numpy() for k, v in zip(self._given, found, strict=True)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--form", choices=["research", "ops"])
    parser.add_argument("--how", choices=["eager", "compiled", "onednn"])
    chosen = parser.parse_args()
    build = functools.partial(TorchLayer, chosen.form, chosen.how)
    serve(build, ("torch", "fbgemm-gpu-cpu"))

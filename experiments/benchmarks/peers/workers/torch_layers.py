"""Linear layers of an artifact in PyTorch, in the artifact's precision.

Layers in int8 are those that PyTorch's static quantization makes, with the scales of the artifact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmarks.peers.workers.torch_dense import set_linear

ENGINES = ("x86", "onednn")
"""Engines of PyTorch's products of int8."""


class ArtifactLayers:
    """The layers of an artifact.

    Args:
        artifact: directory of the artifact.

    Attributes:
        precision: float32, bfloat16 or int8.
    """

    def __init__(self, artifact: Path):
        manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
        self._arrays: dict[str, np.ndarray] = {}
        for note in manifest["layers"]:
            array = np.load(artifact / note["file"])
            if note["dtype"] == "bfloat16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            self._arrays[note["name"]] = array
        self._noted = manifest["dense_layers"]
        self.precision = self._noted["bottom"][0].get("precision", "float32")

    def mlp(self, name: str) -> nn.Module:
        """The bottom or the top MLP, [B, in] to [B, out] of float32."""
        notes = self._noted[name]
        modules: list[nn.Module] = []
        for note in notes:
            kernel, bias = self._floats(note)
            linear = nn.Linear(*kernel.shape)
            set_linear(linear, np.ascontiguousarray(kernel.T), bias)
            modules += [linear, nn.ReLU()] if note["relu"] else [linear]
        if self.precision == "int8":
            scales = [self._arrays[note["quantization"]["scale"]] for note in notes]
            kernels = [self._arrays[note["kernel"]] for note in notes]
            return _Int8(modules, [self._levels(note) for note in notes], kernels, scales)
        return _BFloat16(modules) if self.precision == "bfloat16" else nn.Sequential(*modules)

    def _floats(self, note: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        kernel, bias = self._arrays[note["kernel"]], self._arrays[note["bias"]]
        if kernel.dtype != np.int8:
            return kernel, bias
        own = {x: self._arrays[note["quantization"][x]] for x in ("scale", "levels", "zero")}
        sums = kernel.sum(axis=0, dtype=np.int32)
        return kernel * (own["scale"] * own["levels"]), (bias + own["zero"] * sums) * own["scale"]

    def _levels(self, note: Mapping[str, Any]) -> tuple[float, int]:
        """Scale and zero point of a layer's inputs, as unsigned integers."""
        levels, zero = (self._arrays[note["quantization"][x]][0] for x in ("levels", "zero"))
        return float(1 / levels), int(zero) + 128


class _BFloat16(nn.Module):
    """Layers in bfloat16. Autocast would convert their weights in each call."""

    def __init__(self, modules: list[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(*modules).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out]."""
        return self.layers(x.to(torch.bfloat16)).float()


class _Int8(nn.Module):
    """Layers in int8, but for the last one: its output isn't quantized here, either."""

    def __init__(
        self,
        modules: list[nn.Module],
        levels: list[tuple[float, int]],
        kernels: list[np.ndarray],
        scales: list[np.ndarray],
    ):
        super().__init__()
        linears = [x for x in modules if isinstance(x, nn.Linear)]
        self._levels = levels
        self._packed = []
        for i, linear in enumerate(linears[:-1]):
            weights = torch._make_per_channel_quantized_tensor(
                torch.from_numpy(np.ascontiguousarray(kernels[i].T)),
                torch.from_numpy(scales[i].astype(np.float64) / levels[i][0]),
                torch.zeros(len(scales[i]), dtype=torch.int64),
                0,
            )
            self._packed.append(torch.ops.quantized.linear_prepack(weights, linear.bias.detach()))
        self.last = nn.Sequential(*modules[modules.index(linears[-1]) :])

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out]."""
        if not self._packed:
            return self.last(x)
        q = torch.quantize_per_tensor(x, *self._levels[0], torch.quint8)
        for packed, (scale, zero) in zip(self._packed, self._levels[1:], strict=True):
            q = torch.ops.quantized.linear_relu(q, packed, scale, zero)
        return self.last(q.dequantize())

"""Several mixers side by side on one input, y = sum_i out_i mixer_i(in_i x): Falcon-H1 runs SSD beside attention
(TII 2025). The leaves of a branch carry its name: "ssd.h", "attention.kv"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.models.journal import Pending
from fluvial.models.mixer import Mixer, Step, build, mixer
from fluvial.models.state import Leaf


@mixer("parallel")
class Parallel(Mixer):
    """`branches` by name: a mixer's `kind` and `options`, and the multipliers `scale_in` and `scale_out` (1.0)."""

    def __init__(self, d_model: int, *, branches: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self.scales = {name: (b.get("scale_in", 1.0), b.get("scale_out", 1.0)) for name, b in branches.items()}
        self.branches = nn.ModuleDict(
            {name: build(branch["kind"], d_model, **branch["options"]) for name, branch in branches.items()}
        )
        self.trees = all(inner.trees for inner in self.branches.values())

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        leaves: dict[str, Leaf] = {}
        for branch, inner in self.branches.items():
            assert isinstance(inner, Mixer)
            leaves |= {f"{branch}.{name}": leaf for name, leaf in inner.init_state(batch, dtype, device).items()}
        return leaves

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        total, pending = torch.zeros_like(x), dict[str, Pending]()
        for branch, inner in self.branches.items():
            scale_in, scale_out = self.scales[branch]
            prefix = f"{branch}."
            own = {name.removeprefix(prefix): leaf for name, leaf in state.items() if name.startswith(prefix)}
            y, leaves = inner(x if scale_in == 1 else x * scale_in, own, step)
            total = torch.add(total, y, alpha=scale_out)
            pending |= {f"{branch}.{name}": leaf for name, leaf in leaves.items()}
        return total, pending

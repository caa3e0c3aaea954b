"""Muon for the matrices of blocks (Jordan et al. 2024), AdamW for the rest; warm-up, constant, linear decay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

WARMUP, DECAY_FROM, FLOOR = 60, 0.6, 0.04


class Optimizers:
    """Both optimizers under one schedule; `parts` may be scaled separately (a tower at 0.1 of the rate)."""

    def __init__(self, parts: Sequence[nn.Module], muon_lr: float, adam_lr: float) -> None:
        matrices, rest = [], []
        for part in parts:
            for name, p in part.named_parameters():
                is_matrix = p.ndim == 2 and min(p.shape) >= 32 and "embedding" not in name
                (matrices if is_matrix else rest).append(p)
        self.parameters = [*matrices, *rest]
        self.muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.02)
        self.adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.base = (muon_lr, adam_lr)

    def schedule(self, progress: float, step: int, scale: float = 1.0) -> None:
        """Sets the rates for `progress` in 0..1."""
        decay = 1.0 if progress < DECAY_FROM else max(FLOOR, 1 - (progress - DECAY_FROM) / (1 - DECAY_FROM))
        factor = scale * decay * min(1.0, (step + 1) / WARMUP)
        for optimizer, base in ((self.muon, self.base[0]), (self.adam, self.base[1])):
            for group in optimizer.param_groups:
                group["lr"] = base * factor

    def step(self) -> None:
        """Clips, steps, clears."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, object]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load(self, state: dict[str, dict]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])

    def add(self, parameters: list[nn.Parameter]) -> None:
        """More parameters for AdamW."""
        self.parameters += parameters
        self.adam.param_groups[0]["params"] += parameters

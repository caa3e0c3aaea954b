"""How Qwen's media enter the token stream: three positions per token, and in a video the time of each pair of frames.

Positions (mrope; Qwen2-VL, Wang et al. 2024): all tokens of a step stand at one time; rows and columns count on from
there. Text goes on behind the furthest of them, so that an image of h x w tokens moves the positions by max(h, w) only.
"""

from __future__ import annotations

import torch

from fluvial.encoders.layout import Layout

START, END = "<|vision_start|>", "<|vision_end|>"


def step_layout(height: int, width: int, time: float | None = None) -> Layout:
    """A grid of height x width tokens, in reading order; with a `time` in seconds, a step of a video."""
    rows, columns = torch.arange(height), torch.arange(width)
    axes = (torch.zeros(height, width, dtype=torch.long), rows[:, None], columns[None])
    positions = torch.stack([axis.expand(height, width).flatten() for axis in axes])
    if time is None:
        return Layout(positions)
    return Layout(positions, (f"<{time:.1f} seconds>", START), (END,))

"""A pebble under training: the tower's embeddings in the media slots of the decoder's input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.pebble import variants
from examples.pebble.batches import MEDIA, Batch
from fluvial.adapters.lora import Route


class Pebble(nn.Module):
    """Decoder and vision tower, trained together."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.decoder, self.vision = variants.decoder(variant), variants.vision()

    def embed(self, batch: Batch) -> Tensor:
        """Input embeddings [B, T, D]."""
        x = self.decoder.embed(batch.ids.clamp(min=0))
        slot = batch.ids == MEDIA
        out = x.clone()
        for pictures, merges, rows, shown in (
            (batch.images, 0, ~batch.video_rows, None),
            (batch.videos, 1, batch.video_rows, batch.shown),
        ):
            if pictures is not None:
                tokens = self.vision(pixels(pictures).to(torch.bfloat16 if self.training else x.dtype), merges)
                tokens = tokens if shown is None else tokens[shown]
                out = out.masked_scatter((slot & rows[:, None])[..., None], tokens.to(out.dtype))
        return out

    def loss(self, batch: Batch, route: Route | None = None) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over answer tokens, and the share of answer tokens that are right."""
        hidden, _ = self.decoder(self.embed(batch), route=route)
        target = batch.answer[:, 1:]
        logits = self.decoder.logits(hidden[:, :-1][target], route).float()
        gold = batch.ids[:, 1:][target]
        return F.cross_entropy(logits, gold), (logits.argmax(-1) == gold).float().mean()


def pixels(pictures: Tensor) -> Tensor:
    """uint8 [P, 2, H, W, 3] -> fp32 [P, 2, 3, H, W] in -1..1."""
    return pictures.movedim(-1, 2).float() / 127.5 - 1

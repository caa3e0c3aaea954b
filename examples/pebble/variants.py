"""The pebble family: one vision tower and one data mixture, a decoder per architecture."""

from __future__ import annotations

from typing import Any

from fluvial.encoders.pebble import PebbleVision, PebbleVisionConfig
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig

VOCAB, WIDTH, LAYERS, D_FF = 1024, 192, 4, 512
SWIGLU = BlockConfig("swiglu", {"d_ff": D_FF})
DELTA = BlockConfig("gated_delta", {"heads": 3, "d_k": 64, "d_v": 64, "gate": "hard"})
ATTENTION = BlockConfig("attention", {"heads": 3, "theta": 100000.0, "qk_norm": "rms"})
MAMBA = BlockConfig("mamba2", {"heads": 6, "d_head": 64, "d_state": 64})


def _rwkv(layer: int) -> list[BlockConfig]:
    time = {"d_head": 64, "ranks": (32, 32, 16, 64), "first": layer == 0}
    return [BlockConfig("rwkv7_time", time), BlockConfig("rwkv7_channel", {"d_ff": 768})]


BLOCKS: dict[str, list[BlockConfig]] = {
    "delta": [DELTA, SWIGLU] * LAYERS,
    "transformer": [ATTENTION, SWIGLU] * LAYERS,
    "mamba2": [MAMBA, SWIGLU] * LAYERS,
    "rwkv7": [block for layer in range(LAYERS) for block in _rwkv(layer)],
    "hybrid": [DELTA, SWIGLU, DELTA, SWIGLU, DELTA, SWIGLU, ATTENTION, SWIGLU],
}


def decoder(variant: str) -> Decoder:
    """A fresh decoder of that variant."""
    return Decoder(DecoderConfig(VOCAB, WIDTH, tuple(BLOCKS[variant])))


def vision() -> PebbleVision:
    """A fresh vision tower."""
    return PebbleVision(PebbleVisionConfig(d_model=WIDTH))


def config(variant: str) -> dict[str, Any]:
    """The published config.json of a variant."""
    model = DecoderConfig(VOCAB, WIDTH, tuple(BLOCKS[variant]))
    tower = PebbleVisionConfig(d_model=WIDTH)
    return {
        "model_type": "pebble",
        "architectures": ["PebbleForConditionalGeneration"],
        "torch_dtype": "bfloat16",
        "text_config": {
            "vocab_size": model.vocab,
            "hidden_size": model.d_model,
            "blocks": [{"kind": block.kind, **block.options} for block in model.blocks],
            "norm": model.norm,
            "norm_eps": model.norm_eps,
            "tie_word_embeddings": model.tied_head,
        },
        "vision_config": {
            "width": tower.width,
            "heads": tower.heads,
            "depth": tower.depth,
            "channels": list(tower.channels),
            "tokens": tower.tokens,
            "video_tokens": tower.video_tokens,
        },
    }

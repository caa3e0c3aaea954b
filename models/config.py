"""What shapes a decoder: a flat list of blocks, and what stands around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BlockConfig:
    """A mixer kind and its options. `scale` multiplies what the block adds; `norm_after` norms that instead of what the
    mixer reads (OLMo)."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    norm_after: bool = False

    @property
    def label(self) -> str:
        """The kind for people: branches by their own kinds, and attention that does not grow as such."""
        if self.kind == "parallel":
            return " beside ".join(branch["kind"] for branch in self.options["branches"].values())
        return f"sliding {self.kind}" if self.options.get("window") else self.kind


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that shapes a decoder. `embed_norm` is RWKV's norm right after the embedding; `embed_scale` and
    `logit_scale` multiply embeddings of ids and logits (Granite, Falcon-H1). `deepstack` (Meng et al. 2024): media may
    bring a further part of width D for each of these blocks, which is added to what the block puts out (Qwen3-VL).
    `wide_sum` keeps what the blocks add to in fp32, whatever the mixers compute in (Mamba's residual_in_fp32)."""

    vocab: int
    d_model: int
    blocks: tuple[BlockConfig, ...]
    norm: str = "rms"
    norm_eps: float = 1e-6
    tied_head: bool = True
    embed_norm: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    deepstack: tuple[int, ...] = ()
    wide_sum: bool = False

    @property
    def labels(self) -> dict[str, int]:
        """How many blocks there are of each kind."""
        labels = [block.label for block in self.blocks]
        return {label: labels.count(label) for label in dict.fromkeys(labels)}

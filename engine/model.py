"""`Model`: a loaded checkpoint (decoder, vision tower, tokenizer, chat template), and the low-level call on token
ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters import chips, ops
from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.adapters.lora import Route
from fluvial.encoders.frame import Frame
from fluvial.engine.generation import Generation
from fluvial.engine.loading import fill_shapes, read_shapes
from fluvial.engine.resolve import bundled, resolve
from fluvial.engine.rwkv_tokenizer import WorldTokenizer
from fluvial.engine.template import ChatTemplate
from fluvial.engine.tokenizer import TextTokenizer, Tokenizer
from fluvial.engine.tokenizer_files import read_json
from fluvial.models.decoder import Decoder
from fluvial.models.state import State

__all__ = ["Model", "Processor", "bundled", "load_model", "resolve"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True)
class Processor:
    """How media enter the token stream: `keep_token` keeps the placeholder before each step's embeddings."""

    keep_token: bool = False
    fps: float = 2.0


class Model:
    """A checkpoint in memory. Calling it is the primitive: `logits, state = model(ids, state)`."""

    def __init__(
        self,
        name: str,
        folder: Path,
        config: dict[str, Any],
        decoder: Decoder,
        tower: Any,
        tokenizer: TextTokenizer,
        template: ChatTemplate | None,
        processor: Processor,
        generation: Generation,
    ) -> None:
        self.name, self.folder, self.config = name, folder, config
        self.decoder, self.tower = decoder, tower
        self.tokenizer, self.template, self.processor = tokenizer, template, processor
        self.generation = generation
        self._fingerprint = ""

    @torch.no_grad()
    def __call__(self, ids: Tensor, state: State | None = None, *, route: Route | None = None) -> tuple[Tensor, State]:
        """ids int64 [B, T], `state=None` starts -> logits [B, T, vocab] for every position, and the state after
        them."""
        if ids.ndim != 2:
            raise UsageError(f"ids have shape {list(ids.shape)}.", "The model takes [batch, tokens].")
        vocab = self.decoder.config.vocab
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            raise UsageError(f"A token id lies outside 0..{vocab - 1}.")
        hidden, state = self.decoder(self.decoder.embed(ids.to(self.decoder.device)), state, route=route)
        return self.decoder.logits(hidden, route), state

    def encode(
        self, frames: Sequence[Frame], *, video: bool, route: Route | None = None, total: int | None = None
    ) -> Tensor:
        """Pictures -> embeddings [images or video steps, tokens, D]. `total`: about how many frames the whole video
        has. Raises `UnsupportedError` for a text-only model."""
        if self.tower is None:
            raise UnsupportedError(
                f"{self.name} reads text only.", hint="Use a model with a vision tower, like pebble."
            )
        embeddings: Tensor = self.tower.encode(frames, route, video=video, total=total)
        return embeddings

    def fingerprint(self) -> str:
        """A hash of decoder, tower and chat template; saved sessions carry it."""
        if not self._fingerprint:
            digest = hashlib.blake2b(self.decoder.fingerprint().encode(), digest_size=20)
            for name, tensor in sorted(self.tower.state_dict().items()) if self.tower is not None else ():
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
            seen = self.tower and self.tower.config  # how pictures are cut to size
            digest.update(repr((self.processor, self.template and self.template.source, seen)).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def explain(self) -> dict[str, Any]:
        """What is on: blocks by kind, state and tape bytes, dtype, device, kernels."""
        kinds = [block.kind for block in self.decoder.config.blocks]
        empty = self.decoder.init_state()
        growing = any(not hasattr(leaf, "dtype") for leaf in empty.leaves.values())
        return {
            "model": self.name,
            "type": self.config["model_type"],
            "blocks": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "parameters": sum(p.numel() for m in (self.decoder, self.tower) if m is not None for p in m.parameters()),
            "dtype": str(self.decoder.dtype).removeprefix("torch."),
            "device": str(self.decoder.device),
            "state": "grows with the context" if growing else "constant",
            "state_bytes": empty.nbytes("recurrent"),
            "media": [] if self.tower is None else ["image", "video"],
            "kernels": ops.explain(self.decoder.device.type),
        }


def load_model(name: str | Path = "pebble", *, dtype: str | torch.dtype | None = None, offline: bool = False) -> Model:
    """Loads a checkpoint folder, a `.pth` file, a bundled model or a hub name (`org/name`), tensor by tensor.

    `dtype` ("fp32", "bf16", ...) is what it computes in, fp32 by default; recurrences always run in fp32 or
    wider. `offline`: a hub name comes from the hub's cache only. Raises `ModelNotFoundError`, `IntegrityError` or
    `UnsupportedError`; nothing is half loaded.
    """
    chips.load()
    precision = _dtype(dtype)
    place = resolve(name, offline=offline)
    shapes = read_shapes(place)  # all small files are read before the weights: what is wrong is known at once
    folder = place if place.is_dir() else place.parent
    tokenizer = _tokenizer(folder)
    template = ChatTemplate.load(folder, tokenizer) if _has_template(folder) else None
    processor = _processor(folder)
    generation = Generation.load(folder, tokenizer.eos_ids)
    parts = fill_shapes(shapes, place, precision)
    parts.decoder.fingerprint()
    return Model(
        str(name), folder, parts.config, parts.decoder, parts.tower, tokenizer, template, processor, generation
    )


def _tokenizer(folder: Path) -> TextTokenizer:
    if not (folder / "tokenizer.json").is_file() and WorldTokenizer.in_folder(folder):
        return WorldTokenizer.load(folder)
    return Tokenizer.load(folder)


def _has_template(folder: Path) -> bool:
    files = (folder / "chat_template.json", folder / "tokenizer_config.json")
    return (folder / "chat_template.jinja").is_file() or any(read_json(f).get("chat_template") for f in files)


def _processor(folder: Path) -> Processor:
    options = read_json(folder / "preprocessor_config.json") | read_json(folder / "processor_config.json")
    known = {key: options[key] for key in ("keep_token", "fps") if options.get(key) is not None}
    fps, keep = known.get("fps", 2.0), known.get("keep_token", False)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1000 or not isinstance(keep, bool):
        raise IntegrityError(f"{folder}'s processor_config.json is damaged:", f"{known}.", "Download the model again.")
    return Processor(keep, float(fps))


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype '{dtype}'.", hint=f"One of {', '.join(DTYPES)}.")
    return DTYPES[dtype]

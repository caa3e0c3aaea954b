"""`Model`: a loaded checkpoint (decoder, vision tower, tokenizer, chat template), and the low-level call on token
ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters import chips, ops
from fluvial.adapters.errors import IntegrityError, ModelNotFoundError, UnsupportedError, UsageError
from fluvial.adapters.lora import Route
from fluvial.adapters.weights import Weights, fill
from fluvial.encoders import towers
from fluvial.encoders.frame import Frame
from fluvial.engine.template import ChatTemplate
from fluvial.engine.tokenizer import TextTokenizer, Tokenizer
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.state import State

BUNDLED = Path(checkpoints.__file__).parents[1] / "pebble"
DEFAULT = "delta"
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
    ) -> None:
        self.name, self.folder, self.config = name, folder, config
        self.decoder, self.tower = decoder, tower
        self.tokenizer, self.template, self.processor = tokenizer, template, processor
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

    def encode(self, frames: Sequence[Frame], *, video: bool, route: Route | None = None) -> Tensor:
        """Pictures -> embeddings [images or video steps, tokens, D]; raises `UnsupportedError` for a text-only
        model."""
        if self.tower is None:
            raise UnsupportedError(
                f"{self.name} reads text only.", hint="Use a model with a vision tower, like pebble."
            )
        embeddings: Tensor = self.tower.encode(frames, route, video=video)
        return embeddings

    def fingerprint(self) -> str:
        """A hash of decoder, tower and chat template; saved sessions carry it."""
        if not self._fingerprint:
            digest = hashlib.blake2b(self.decoder.fingerprint().encode(), digest_size=20)
            for name, tensor in sorted(self.tower.state_dict().items()) if self.tower is not None else ():
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
            digest.update(repr((self.processor, self.template and self.template.source)).encode())
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


def bundled() -> list[str]:
    """The names of the bundled models, the default first."""
    found = sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))
    names = [f"pebble/{variant}" for variant in found if variant != DEFAULT]
    return ["pebble", *names] if DEFAULT in found else names


def resolve(name: str | Path) -> Path:
    """A folder for a path or a bundled model's name, or a `ModelNotFoundError`."""
    text = str(name)
    if text == "pebble":
        return BUNDLED / DEFAULT
    if text in bundled():
        return BUNDLED / text.removeprefix("pebble/")
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    why = f"{folder} has no config.json." if folder.is_dir() else "It is neither a folder nor a bundled model."
    raise ModelNotFoundError(f"No model '{text}'.", why, f"Bundled: {', '.join(bundled())}.")


def load_model(name: str | Path = "pebble", *, dtype: str | torch.dtype | None = None) -> Model:
    """Loads a checkpoint folder or a bundled model, tensor by tensor.

    `dtype` ("fp32", "bf16", ...) is what it computes in, fp32 by default; recurrences always run in fp32 or
    wider. Raises `ModelNotFoundError`, `IntegrityError` or `UnsupportedError`; nothing is half loaded.
    """
    chips.load()
    folder = resolve(name)
    try:
        config = json.loads((folder / "config.json").read_text())
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{folder / 'config.json'} is damaged.", repr(error), "Download the model again."
        ) from error
    family = checkpoints.family(model_type)
    try:
        with torch.device("meta"):  # shapes only: every value comes from the file
            decoder, vision = Decoder(family.decoder_config(config)), towers.build(config)
        modules: dict[str, Any] = {"decoder": (decoder, family.plan(config))}
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{folder / 'config.json'} does not describe a {model_type} model.", repr(error)
        ) from error
    if vision is not None:
        modules["vision"] = vision
    fill(modules, Weights(folder), _dtype(dtype))
    tower = None if vision is None else vision[0]
    for module, _ in modules.values():
        module.eval()
    decoder.fingerprint()
    tokenizer = Tokenizer.load(folder)
    has_template = (folder / "chat_template.jinja").is_file() or (folder / "tokenizer_config.json").is_file()
    template = ChatTemplate.load(folder, tokenizer) if has_template else None
    processor = folder / "processor_config.json"
    options = json.loads(processor.read_text()) if processor.is_file() else {}
    known = {key: options[key] for key in ("keep_token", "fps") if key in options}
    return Model(str(name), folder, config, decoder, tower, tokenizer, template, Processor(**known))


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype '{dtype}'.", hint=f"One of {', '.join(DTYPES)}.")
    return DTYPES[dtype]

"""`Model`: a loaded checkpoint (decoder, vision tower, tokenizer, chat template), and the low-level call on token
ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fluvial.adapters import chips, ops, pages
from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.adapters.fingerprint import add_tensors
from fluvial.adapters.lora import Route
from fluvial.adapters.recipes import TOWER, bytes_by_format, count, recipe
from fluvial.encoders.frame import Frame
from fluvial.engine import rwkv_chat
from fluvial.engine.depths import Depths
from fluvial.engine.generation import Generation
from fluvial.engine.loading import fill_shapes, held, read_shapes
from fluvial.engine.plugins import Plugins
from fluvial.engine.resolve import bundled, resolve
from fluvial.engine.rwkv_tokenizer import WorldTokenizer
from fluvial.engine.template import ChatTemplate
from fluvial.engine.tokenizer import TextTokenizer, Tokenizer
from fluvial.engine.tokenizer_files import read_json
from fluvial.models.decoder import Decoder
from fluvial.models.mtp import Mtp
from fluvial.models.state import State
from fluvial.models.tape import Tape

if TYPE_CHECKING:
    from fluvial.engine.cache.cache import StateCache

__all__ = ["Model", "Processor", "bundled", "load_model", "resolve"]

LARGE = 1 << 30  # bytes of weights from which on a chunk's passing memory matters more than the time to map it

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
        draft_head: Mtp | None = None,
        recipe: str | None = None,
        mapped: Path | None = None,
    ) -> None:
        """`mapped`: the file that weights lie in, all of them or some."""
        self.name, self.folder, self.config = name, folder, config
        self.decoder, self.tower = decoder, tower
        self.tokenizer, self.template, self.processor = tokenizer, template, processor
        self.generation, self.draft_head, self.recipe = generation, draft_head, recipe
        self.plugins = Plugins(name, config, decoder, tower)
        self.route: Route | None = None  # what a call takes where it names none
        self.cache: StateCache | None = None  # what sessions share
        self.depths = Depths()  # and what they know of drafting
        self._fingerprint = ""
        self._mapped, self._once = mapped, False
        if mapped is not None and tower is not None:
            for layers in (m for m in tower.modules() if isinstance(m, nn.ModuleList)):
                for layer in layers:
                    layer.register_forward_hook(self._passed)

    @torch.no_grad()
    def __call__(self, ids: Tensor, state: State | None = None, *, route: Route | None = None) -> tuple[Tensor, State]:
        """ids int64 [B, T], `state=None` starts -> logits [B, T, vocab] for every position, and the state after
        them."""
        if ids.ndim != 2:
            raise UsageError(f"ids have shape {list(ids.shape)}.", "The model takes [batch, tokens].")
        route = self.route if route is None else route
        vocab = self.decoder.config.vocab
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            raise UsageError(f"A token id lies outside 0..{vocab - 1}.")
        hidden, state = self.decoder(self.decoder.embed(ids.to(self.decoder.device), route), state, route=route)
        return self.decoder.logits(hidden, route), state

    def encode(
        self, frames: Sequence[Frame], *, video: bool, route: Route | None = None, total: int | None = None
    ) -> Tensor | list[Tensor]:
        """Pictures -> embeddings [images or video steps, tokens, D]; a list of [tokens, D] where an image may give
        several steps. `total`: about how many frames the whole video has. Raises `UnsupportedError` for a text-only
        model."""
        if self.tower is None:
            raise UnsupportedError(
                f"{self.name} reads text only.", hint="Use a model with a vision tower, like pebble."
            )
        self._once = not video  # stills come one by one; frames would have everything read again each time
        if self._once:
            self._release(self.decoder)
            pages.trim()
        embeddings: Tensor | list[Tensor] = self.tower.encode(frames, route, video=video, total=total)
        if self._once:
            self._release(self.tower)
        return embeddings

    def _passed(self, layer: nn.Module, *_: object) -> None:
        """A layer of the tower has run."""
        if self._once:
            self._release(layer)

    def _release(self, *modules: nn.Module | None) -> None:
        """Weights that are mapped from a file need no memory while other ones are in use."""
        if self._mapped is not None:
            pages.release((t for m in modules if m is not None for t in held(m)), self._mapped)

    def fingerprint(self) -> str:
        """A hash of decoder, tower and chat template; saved sessions carry it."""
        if not self._fingerprint:
            digest = hashlib.blake2b(self.decoder.fingerprint().encode(), digest_size=20)
            self._release(self.decoder)
            if self.tower is not None:
                add_tensors(digest, self.tower)
                self._release(self.tower)
            seen = self.tower and self.tower.config  # how pictures are cut to size
            digest.update(repr((self.processor, self.template and self.template.source, seen)).encode())
            if self.recipe is not None:
                digest.update(self.recipe.encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def explain(self) -> dict[str, Any]:
        """What is on: blocks by kind, state and tape bytes, dtype, weights' formats and bytes, device, kernels."""
        named = {"decoder": self.decoder, TOWER: self.tower, "draft": self.draft_head}
        modules = {key: module for key, module in named.items() if module is not None}
        empty = self.decoder.init_state()
        growing = any(isinstance(leaf, Tape) for leaf in empty.leaves.values())
        return {
            "model": self.name,
            "type": self.config["model_type"],
            "blocks": self.decoder.config.labels,
            "parameters": count(modules),
            "dtype": str(self.decoder.dtype).removeprefix("torch."),
            "quant": self.recipe or "none",
            "weights": bytes_by_format(modules),
            "device": str(self.decoder.device),
            "state": "grows with the context" if growing else "constant",
            "kv": self.decoder.kv if growing or self.decoder.kv != "exact" else "none",
            "state_dtype": self.decoder.state_dtype,
            "state_bytes": empty.nbytes("recurrent"),
            "draft_head": "none" if self.draft_head is None else "mtp",
            "media": [] if self.tower is None else list(self.tower.reads),
            "plugins": [info.name for info in self.plugins.list()],
            "cache": "off" if self.cache is None else self.cache.explain(),
            "kernels": ops.explain(self.decoder.device.type),
        }


def load_model(
    name: str | Path = "pebble",
    *,
    dtype: str | torch.dtype | None = None,
    quant: str | None = None,
    state_dtype: str = "fp32",
    kv: str = "exact",
    plugin: str | Path | None = None,
    offline: bool = False,
) -> Model:
    """Loads a checkpoint folder, a `.pth` file, a bundled model or a hub name (`org/name`), tensor by tensor.

    `dtype` ("fp32", "bf16", ...) is what it computes in, fp32 by default; recurrences always run in fp32 or
    wider. `quant` ("int8", "int4", "int4-small", "bf16", ...) is how its matrices are stored; with "-a8" behind
    they multiply activations of 8 bits, sooner where a prompt is long. `state_dtype` ("bf16", "int8") is how recurrent
    memories are kept between forwards, `kv` how attention keeps its rows: "exact", "int8", or "window:N", the last N
    only. `plugin`: a folder; calls of the model go through it where they name no route. `offline`: a hub name comes
    from the hub's cache only. Raises `UsageError`, `ModelNotFoundError`, `IntegrityError` or `UnsupportedError`;
    nothing is half loaded.
    """
    chips.load()
    precision, stored = dtype_of(dtype), None if quant is None else recipe(quant)
    place = resolve(name, offline=offline)
    shapes = read_shapes(place)  # all small files are read before the weights: what is wrong is known at once
    folder = place if place.is_dir() else place.parent
    tokenizer = _tokenizer(folder)
    template = _template(folder, tokenizer)
    processor = _processor(folder)
    generation = Generation.load(folder, tokenizer.eos_ids)
    if template is not None and template.source == rwkv_chat.TEMPLATE:
        generation = rwkv_chat.ending(generation)
    pages.trim(0)  # reading a large vocabulary leaves hundreds of MB behind
    shapes.decoder.keep(state_dtype)
    shapes.decoder.keep_rows(kv)
    if shapes.draft is not None:
        shapes.draft[0].layers.keep_rows(kv)
    parts = fill_shapes(shapes, place, precision, stored)
    large = sum(t.nbytes for t in parts.decoder.state_dict().values()) > LARGE
    (pages.apart if large else pages.keep)()
    parts.decoder.identify()
    if parts.draft_head is not None:
        parts.draft_head.layers.identify()
    model = Model(
        str(name),
        folder,
        parts.config,
        parts.decoder,
        parts.tower,
        tokenizer,
        template,
        processor,
        generation,
        parts.draft_head,
        parts.recipe,
        parts.mapped,
    )
    if plugin is not None:
        model.route = model.plugins.route(model.plugins.load(plugin).name)
    return model


def _tokenizer(folder: Path) -> TextTokenizer:
    if not (folder / "tokenizer.json").is_file() and WorldTokenizer.in_folder(folder):
        return WorldTokenizer.load(folder)
    return Tokenizer.load(folder)


def _template(folder: Path, tokenizer: TextTokenizer) -> ChatTemplate | None:
    files = (folder / "chat_template.json", folder / "tokenizer_config.json")
    if (folder / "chat_template.jinja").is_file() or any(read_json(f).get("chat_template") for f in files):
        return ChatTemplate.load(folder, tokenizer)
    return rwkv_chat.chat_template(tokenizer) if isinstance(tokenizer, WorldTokenizer) else None


def _processor(folder: Path) -> Processor:
    options = read_json(folder / "preprocessor_config.json") | read_json(folder / "processor_config.json")
    known = {key: options[key] for key in ("keep_token", "fps") if options.get(key) is not None}
    fps, keep = known.get("fps", 2.0), known.get("keep_token", False)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1000 or not isinstance(keep, bool):
        raise IntegrityError(f"{folder}'s processor_config.json is damaged:", f"{known}.", "Download the model again.")
    return Processor(keep, float(fps))


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its short name. Errors: UsageError that lists them."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype '{dtype}'.", hint=f"One of {', '.join(DTYPES)}.")
    return DTYPES[dtype]

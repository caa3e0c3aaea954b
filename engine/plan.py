"""How much memory a model will take, from its config alone: nothing is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.adapters.formats import Format
from fluvial.adapters.packed import Manifest, formats_of, prepare
from fluvial.adapters.recipes import RECIPES, TOWER, Recipe, class_of, matrices
from fluvial.adapters.weights import WIDE
from fluvial.encoders.frame import Frame
from fluvial.engine.loading import filled_modules, read_shapes, stored_names
from fluvial.engine.stretch import chunk_size
from fluvial.engine.workspace import peak
from fluvial.models.decoder import Decoder
from fluvial.models.rounded import Rounded
from fluvial.models.state import Leaf, State
from fluvial.models.tape import Tape

IMAGE_TOKENS = 1024  # of an image, where the tower allows as many: about a megapixel at 32 x 32 pixels a token
OTHER = "norms, gates' vectors, biases"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: `weights` by class, one session's `state` and `tape` (KV rows) after `tokens` tokens, and the `workspace`
    of its last chunk, or of looking at an image: the most that a forward holds beside them."""

    weights: dict[str, int]
    state: int
    tape: int
    workspace: int
    tokens: int
    recipe: str | None

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.state + self.tape + self.workspace


def plan(
    place: Path,
    recipe: Recipe | None = None,
    dtype: torch.dtype | None = None,
    *,
    context: int = 0,
    images: int = 0,
    state_dtype: str = "fp32",
    kv: str = "exact",
) -> MemoryPlan:
    """The memory of a model (a folder or file) with one session of `context` tokens of text and `images` of about a
    megapixel. Errors: UsageError for a negative number, UnsupportedError for a recipe or images that cannot apply."""
    shapes = read_shapes(place)
    if context < 0 or images < 0:
        raise UsageError(f"A context of {context} tokens and {images} images makes no sense.")
    modules = {key: module for key, (module, _) in filled_modules(shapes, stored_names(place)).items()}
    tower: Any = modules.get(TOWER)
    if images and tower is None:
        raise UnsupportedError(f"{place} reads text only.", hint="Plan it without images.")
    manifest = Manifest.read(shapes.config)
    if manifest is not None:
        manifest = manifest.under(place, recipe, modules)
        recipe = RECIPES.get(manifest.recipe)
    formats = manifest.formats if manifest is not None else formats_of(recipe, modules) if recipe else {}
    dtype = dtype or (torch.float32 if recipe is None else recipe.dtype)
    per_image = min(tower.tokens(video=False), IMAGE_TOKENS) if images else 0
    tokens = context + images * per_image
    weights = _weights(modules, formats, dtype)
    prepare(modules, formats)
    for module in modules.values():
        module.to(dtype)
    decoder, most = shapes.decoder, chunk_size(shapes.decoder.config.d_model)
    chunk = min(max(tokens, 1), most)
    decoder.keep(state_dtype)
    decoder.keep_rows(kv)
    with torch.device("meta"):
        before, state = (grown(decoder.init_state(), count, most) for count in (tokens - min(chunk, tokens), tokens))
    return MemoryPlan(
        weights=weights,
        state=state.nbytes("recurrent"),
        tape=state.nbytes("tape"),
        workspace=max(_forward(decoder, before, chunk), _look(tower, per_image) if images else 0),
        tokens=tokens,
        recipe=manifest.recipe if manifest is not None else None if recipe is None else recipe.name,
    )


def grown(state: State, tokens: int, chunk: int) -> State:
    """The state on the meta device after so many tokens, fed as a session feeds them: a tape grows by steps."""
    leaves = dict(state.leaves)
    for name, leaf in leaves.items():
        done = 0
        while isinstance(leaf, Tape) and done < tokens:
            more = min(chunk, tokens - done)
            k, v = (rows.new_empty(*rows.shape[:2], more, rows.shape[3]) for rows in leaf.rows)
            leaf, done = leaf.append(k, v, (more,) * state.batch), done + more
        leaves[name] = leaf
    return replace(state, leaves=leaves, position=(tokens,) * state.batch)


def _weights(modules: dict[str, nn.Module], formats: Mapping[str, Format], dtype: torch.dtype) -> dict[str, int]:
    layers, totals = matrices(modules), Counter[str]()
    for key, module in modules.items():
        for name, parameter in module.named_parameters():
            owner, _, leaf = f"{key}.{name}".rpartition(".")
            if leaf == "weight" and owner in layers:
                layer, kind = layers[owner], class_of(owner, layers[owner])
                if owner in formats:
                    parts = formats[owner].empty(layer.d_out, layer.d_in, None, "meta")
                    totals[kind] += sum(part.nbytes for part in parts.values())
                else:
                    totals[kind] += parameter.numel() * dtype.itemsize
            else:
                kept = torch.float32 if leaf in WIDE and dtype != torch.float64 else dtype
                totals["tower" if key == TOWER else OTHER] += parameter.numel() * kept.itemsize
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _forward(decoder: Decoder, state: State, tokens: int) -> int:
    """The most that a forward of so many more tokens holds, the logits of the last one and the next state included."""
    ids, ends = torch.zeros(1, tokens, dtype=torch.long, device="meta"), list[State]()

    def run() -> Tensor:
        hidden, after = decoder(decoder.embed(ids), state)
        ends.append(after)
        return decoder.logits(hidden[0, -1]).float()

    held, tape = [rows for leaf in state.leaves.values() for rows in _tensors(leaf)], state.nbytes("tape")
    most = peak(run, [*decoder.parameters(), *decoder.buffers(), *held, ids])
    return most - (ends[0].nbytes("tape") - tape)  # which stay, in stores that both states know


def _tensors(leaf: Leaf) -> list[Tensor]:
    if isinstance(leaf, Rounded):
        return list(leaf.parts.values())
    return list(leaf.rows) if isinstance(leaf, Tape) else [leaf]


def _look(tower: Any, tokens: int) -> int:
    """The most that the tower holds while it looks at an image of so many tokens."""
    side = int(tokens**0.5) * 32
    frame = Frame(np.zeros((side, side, 3), np.uint8))
    return peak(lambda: tower.encode([frame], video=False), [*tower.parameters(), *tower.buffers()])

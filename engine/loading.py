"""A checkpoint folder's modules: config.json read, shapes made on the meta device, values streamed into them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluvial.adapters import pages
from fluvial.adapters.aside import Aside
from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.packed import FILE, Manifest, Packed, formats_of, is_packed, own_plan, prepare
from fluvial.adapters.pth import PthWeights, opened, torch_file
from fluvial.adapters.recipes import RECIPES, TOWER, Recipe
from fluvial.adapters.weights import Plan, Source, fill
from fluvial.encoders import towers
from fluvial.engine.tokenizer_files import read_json
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.mtp import Mtp

LARGEST_CONFIG = 16 << 20  # bytes
MOST_LAYERS = 4096  # a config with more is damaged: building so many modules would take all memory by itself
DRAFT = "draft"  # the drafting head's key, where matrices are named
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")


@dataclass(frozen=True)
class Parts:
    """What a folder's config and weights give, ready to run."""

    config: dict[str, Any]
    decoder: Decoder
    tower: Any
    draft_head: Mtp | None = None
    recipe: str | None = None
    mapped: Path | None = None  # the file that weights lie in, all of them or those that are not needed at each token


@dataclass(frozen=True)
class Shapes:
    """The modules on the meta device: every shape, no memory. `plan` and the others' say where tensors go. `draft`: a
    head that the family publishes, whether or not these weights hold it (`holds_draft`)."""

    config: dict[str, Any]
    decoder: Decoder
    plan: Plan
    vision: tuple[towers.Tower, Plan] | None
    draft: tuple[Mtp, Plan] | None = None

    def holds_draft(self, names: Iterable[str]) -> bool:
        """Whether any of these tensors belongs to the head for drafting."""
        if self.draft is None:
            return False
        rule = own_plan(DRAFT) if is_packed(self.config) else self.draft[1]
        return any(rule(name) is not None for name in names)


def read_config(place: Path) -> dict[str, Any]:
    """config.json as a dict with a `model_type`, or what an official `.pth` says by its shapes. `place`: a model's
    folder or file. Errors: IntegrityError, or UnsupportedError for quantized weights."""
    path = place / "config.json"
    if not path.is_file() and (file := torch_file(place)) is not None:
        return checkpoints.inferred(PthWeights(file).shapes())
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"{path.stat().st_size} bytes")
        config = checkpoints.identified(json.loads(path.read_text("utf-8")))
        if not isinstance(config["model_type"], str):
            raise TypeError("model_type is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise IntegrityError(f"{path} is damaged.", repr(error), "Download the model again.") from error
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in LAYERS:
            count = part.get(key)
            if isinstance(count, int) and not 0 <= count <= MOST_LAYERS:
                raise IntegrityError(f"{path} asks for {key} = {count}.", f"At most {MOST_LAYERS} make sense.")
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "") if isinstance(method, dict) else method
        raise UnsupportedError(
            f"{place} holds weights quantized by {method!s:.40}.", hint="Use the unquantized checkpoint."
        )
    return config


def processor_of(place: Path) -> dict[str, Any]:
    """What a folder says about pictures and videos, in the newer file's form. Errors: IntegrityError."""
    files = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
    older = {key: found for key, name in files.items() if (found := read_json(place / name))}
    return older | read_json(place / "processor_config.json")


def read_shapes(place: Path) -> Shapes:
    """The modules that a folder describes, without reading weights. Errors: IntegrityError, UnsupportedError."""
    config = read_config(place)
    family = checkpoints.family(config["model_type"])
    try:
        with torch.device("meta"):  # shapes only: every value comes from the file
            decoder, vision = Decoder(family.decoder_config(config)), towers.build(config, processor_of(place))
            draft = checkpoints.draft_head(config)
        return Shapes(config, decoder, family.plan(config), vision, draft)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise IntegrityError(
            f"{place / 'config.json'} does not describe a {config['model_type']} model.",
            f"{error!r:.300}",
            "Download the model again.",
        ) from error


def stored_names(place: Path) -> list[str]:
    """The names of a folder's tensors, without reading them: from the index, or from the weights' own header; none
    where neither is here."""
    index = read_json(place / "model.safetensors.index.json").get("weight_map")
    if isinstance(index, dict):
        return list(index)
    return opened(place).names() if (place / "model.safetensors").is_file() or torch_file(place) else []


def load_parts(place: Path, dtype: torch.dtype | None = None, recipe: Recipe | None = None) -> Parts:
    """Decoder and tower of a folder, read tensor by tensor, their matrices stored as the recipe says; no tokenizer is
    needed. `dtype`: what the model computes in, the recipe's or fp32 by default.

    Raises `ModelNotFoundError`, `IntegrityError` or `UnsupportedError`; nothing is half loaded.
    """
    return fill_shapes(read_shapes(place), place, dtype, recipe)


def fill_shapes(shapes: Shapes, place: Path, dtype: torch.dtype | None = None, recipe: Recipe | None = None) -> Parts:
    """The second half of `load_parts`: the values into the modules. The shapes cannot be used again."""
    manifest = Manifest.read(shapes.config)
    source: Source = opened(place) if manifest is None else Packed(place)
    modules = filled_modules(shapes, source.names())
    bare = {key: module for key, (module, _) in modules.items()}
    if manifest is not None:
        manifest = manifest.under(place, recipe, bare)
        recipe = RECIPES.get(manifest.recipe)
        prepare(bare, manifest.formats)
    computes = dtype or (torch.float32 if recipe is None else recipe.dtype)
    mapped = place / FILE if manifest is not None else None
    if manifest is not None or recipe is None:
        fill(modules, source, computes)
    else:
        apart = [m for key, m in bare.items() if key != "decoder"]
        with closing(Aside(sum(t.numel() * 4 + PAGESIZE for m in apart for t in held(m)))) as aside:
            mapped, formats = aside.path, formats_of(recipe, bare)
            fill(modules, source, computes, formats, lambda key, t: t if key == "decoder" else aside.keep(t))
    for module in bare.values():
        module.eval()
    if manifest is None:  # what is mapped stays so
        pages.gather(t for key, m in bare.items() if key == "decoder" or recipe is None for t in held(m))
    name = manifest.recipe if manifest is not None else None if recipe is None else recipe.name
    draft: Any = bare.get(DRAFT)
    return Parts(shapes.config, shapes.decoder, bare.get(TOWER), draft, name, mapped)


def held(module: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors of a module."""
    return chain(module.parameters(), module.buffers())


def filled_modules(shapes: Shapes, names: Iterable[str]) -> dict[str, tuple[nn.Module, Plan]]:
    """The modules that weights with these names are for, and where each goes."""
    modules: dict[str, tuple[nn.Module, Plan]] = {"decoder": (shapes.decoder, shapes.plan)}
    if shapes.vision is not None:
        modules[TOWER] = shapes.vision
    if shapes.draft is not None and shapes.holds_draft(names):
        modules[DRAFT] = shapes.draft
    if is_packed(shapes.config):
        return {key: (module, own_plan(key)) for key, (module, _) in modules.items()}
    return modules

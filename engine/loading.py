"""A checkpoint folder's modules: config.json read, shapes made on the meta device, values streamed into them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.pth import PthWeights, opened, torch_file
from fluvial.adapters.weights import Plan, fill
from fluvial.encoders import towers
from fluvial.engine.tokenizer_files import read_json
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder

LARGEST_CONFIG = 16 << 20  # bytes
MOST_LAYERS = 4096  # a config with more is damaged: building so many modules would take all memory by itself
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")


@dataclass(frozen=True)
class Parts:
    """What a folder's config and weights give, ready to run."""

    config: dict[str, Any]
    decoder: Decoder
    tower: Any


@dataclass(frozen=True)
class Shapes:
    """The modules on the meta device: every shape, no memory. `plan` and the tower's say where tensors go."""

    config: dict[str, Any]
    decoder: Decoder
    plan: Plan
    vision: tuple[nn.Module, Plan] | None


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
        return Shapes(config, decoder, family.plan(config), vision)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise IntegrityError(
            f"{place / 'config.json'} does not describe a {config['model_type']} model.",
            f"{error!r:.300}",
            "Download the model again.",
        ) from error


def load_parts(place: Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Decoder and tower of a folder with their weights in `dtype`, read tensor by tensor; no tokenizer is needed.

    Raises `ModelNotFoundError`, `IntegrityError` or `UnsupportedError`; nothing is half loaded.
    """
    return fill_shapes(read_shapes(place), place, dtype)


def fill_shapes(shapes: Shapes, place: Path, dtype: torch.dtype) -> Parts:
    """The second half of `load_parts`: the values into the modules. The shapes cannot be used again."""
    modules: dict[str, tuple[nn.Module, Plan]] = {"decoder": (shapes.decoder, shapes.plan)}
    if shapes.vision is not None:
        modules["vision"] = shapes.vision
    fill(modules, opened(place), dtype)
    for module, _ in modules.values():
        module.eval()
    return Parts(shapes.config, shapes.decoder, None if shapes.vision is None else shapes.vision[0])

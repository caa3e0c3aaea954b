"""`adapter_model.safetensors` as PEFT writes it: its tensors, sorted by the published module that each belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, ModelNotFoundError, UnsupportedError
from fluvial.adapters.peft_config import PICKLED, WEIGHTS, PeftConfig

PREFIX, LONGEST = "base_model.model.", 512  # characters of a tensor's name
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(?:\.default)?(?:\.(?P<leaf>weight|bias))?"
)
_BASE = re.compile(r"(?P<module>.+)\.(?:base_layer|original_module)\.(?P<leaf>weight|bias)")


@dataclass(frozen=True)
class Low:
    """The low-rank tensors of one published matrix [out, in]: A [rank, in], B [out, rank], `scale` for their product.

    `lookup`: an embedding's, whose table is [in, out]. `magnitude` is DoRA's [out], `bias` [out] lora_B's own.
    """

    A: Tensor
    B: Tensor
    scale: float
    lookup: bool
    magnitude: Tensor | None
    bias: Tensor | None


@dataclass
class PeftFile:
    """`low` by module; `whole` by full tensor name: what takes a base tensor's place; `copies`: what should equal the
    base's, saved along by PEFT."""

    low: dict[str, Low] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)
    parameters: int = 0


def read_file(folder: Path, config: PeftConfig) -> PeftFile:
    """Errors: ModelNotFoundError; UnsupportedError for a pickle; IntegrityError for a damaged or inconsistent file."""
    tensors, found = _tensors(folder), PeftFile()
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX) or len(key) > LONGEST:
            raise IntegrityError(
                f"{WEIGHTS} has a tensor {key!r:.120}.", f"PEFT's names begin with {PREFIX} and are not that long."
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise IntegrityError(f"{key} holds no finite numbers.", hint="Get the plugin again.")
        name = key.removeprefix(PREFIX)
        found.parameters += tensor.numel()
        if match := _LORA.fullmatch(name):
            part = match["part"] + ("_bias" if match["leaf"] == "bias" else "")
            parts.setdefault(match["module"], {})[part] = tensor
        elif match := _BASE.fullmatch(name):
            kind = found.whole if match["leaf"] == "bias" else found.copies
            kind[f"{match['module']}.{match['leaf']}"] = tensor
        elif "bias" in name or config.replaces(name):
            found.whole[name.replace(".modules_to_save.", ".").replace(".default.", ".")] = tensor
        else:
            found.copies[name] = tensor
    found.low = {module: _low(module, given, config) for module, given in parts.items()}
    return found


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / PICKLED).is_file():
            raise UnsupportedError(
                f"{folder / PICKLED} may run code when it is read.",
                f"Only {WEIGHTS} is read.",
                "Save it again with save_pretrained(..., safe_serialization=True).",
            )
        raise ModelNotFoundError(f"There is no {WEIGHTS} in {folder}.", hint="Check the path.")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged.", str(error), "Get the plugin again.") from error


def _low(module: str, given: dict[str, Tensor], config: PeftConfig) -> Low:
    lookup = "embedding_A" in given or "embedding_B" in given
    A, B = (given.get(f"embedding_{name}" if lookup else name) for name in "AB")
    if A is None or B is None:
        raise IntegrityError(f"The plugin has only one of the two matrices of {module}.", hint="Get the plugin again.")
    if not config.targets_module(module):
        raise IntegrityError(f"The plugin holds {module}.", "Its config does not target that module.")
    if A.ndim != 2 or B.ndim != 2:
        raise UnsupportedError(
            f"The plugin changes the convolution {module}.", "LoRA on convolutions is not supported."
        )
    rank, magnitude = config.rank_of(module), given.get("magnitude_vector")
    if A.shape[0] != rank or B.shape[1] != rank:
        raise IntegrityError(
            f"{module} has A {list(A.shape)} and B {list(B.shape)}.", f"Its config says a rank of {rank}."
        )
    if config.dora != (magnitude is not None):
        raise IntegrityError(f"use_dora is {config.dora}, which the tensors of {module} contradict.")
    bias = given.get("B_bias")
    if config.dora and bias is not None:
        raise UnsupportedError(f"The plugin has DoRA and a bias of lora_B on {module}.", "PEFT knows no such thing.")
    for vector in (magnitude, bias):
        if vector is not None and vector.numel() != B.shape[0]:
            raise IntegrityError(f"{module} has a vector of {vector.numel()} for {B.shape[0]} rows.")
    return Low(A, B, config.scale_of(module), lookup, None if magnitude is None else magnitude.flatten(), bias)

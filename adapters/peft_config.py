"""`adapter_config.json` as PEFT writes it: which modules a plugin changes, with which rank and scale.

Names are matched as PEFT matches them. An option that changes the result and is not implemented is refused by name; one
that only matters in training is passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluvial.adapters import expressions
from fluvial.adapters.errors import IntegrityError, ModelNotFoundError, UnsupportedError

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
LARGEST = 1 << 20  # bytes of a config
_READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
_READ |= {"use_dora", "bias", "lora_bias", "modules_to_save", "target_modules", "exclude_modules"}
_READ |= {"layers_to_transform", "layers_pattern", "init_lora_weights"}
# PEFT ignores fan_in_fan_out on matrices that are stored [out, in], as all of the families here are
_TRAINING = {"auto_mapping", "task_type", "inference_mode", "revision", "peft_version", "lora_dropout"}
_TRAINING |= {"fan_in_fan_out", "megatron_core", "runtime_config", "eva_config", "corda_config", "loftq_config"}
_TRAINING |= {"lora_ga_config", "qalora_group_size"}  # of inits and of options that are refused themselves
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # these inits train beside an altered base


@dataclass(frozen=True)
class PeftConfig:
    """The options that say what a plugin's tensors mean."""

    base: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilized: bool
    dora: bool
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        return self.ranks.get(_pattern_of(module, self.ranks), self.rank)

    def scale_of(self, module: str) -> float:
        rank, alpha = self.rank_of(module), self.alphas.get(_pattern_of(module, self.alphas), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def replaces(self, module: str) -> bool:
        """Whether the module is one of `modules_to_save`, or lies in one."""
        return any(expressions.match(r"(^|.*\.){}($|\..*)", name, module) for name in self.saved)

    def targets_module(self, module: str) -> bool:
        """Whether PEFT puts LoRA on the module of that name."""
        if self.replaces(module) or (self.excluded and _named(module, self.excluded)):
            return False
        if not _named(module, self.targets):
            return False
        if not self.layers or isinstance(self.targets, str) or module in self.targets:
            return True
        patterns = [rf"(?:^|.*?\.){name}" for name in self.layers_pattern] or [r".*?\.[^.]*"]
        found = next(filter(None, (re.match(rf"{pattern}\.(\d+)\.", module) for pattern in patterns)), None)
        return found is not None and int(found[1]) in self.layers


def read_config(folder: Path) -> PeftConfig:
    """Errors: ModelNotFoundError, IntegrityError for a damaged file, UnsupportedError naming the option."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelNotFoundError(f"There is no plugin in {folder}.", f"It has no {CONFIG}.", "Check the path.")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        said = json.loads(path.read_text("utf-8"))
        _supported(said)
        return _parsed(said)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged.", f"{error!r:.200}", "Get the plugin again.") from error


def _supported(said: dict[str, Any]) -> None:
    kind = said["peft_type"]
    if kind != "LORA":
        raise UnsupportedError(f"The plugin is of type {kind!s:.40}.", "Only LORA is supported.")
    init = said.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise UnsupportedError(
            f"The plugin says init_lora_weights={init!r:.40}.",
            "Such a plugin belongs to a base whose weights were altered.",
            "Save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA.",
        )
    known = _READ | _TRAINING
    if unknown := sorted(option for option, value in said.items() if option not in known and value):
        raise UnsupportedError(
            f"The plugin asks for {', '.join(unknown):.200}, which is not supported.",
            hint="Train it without, or merge it into the weights.",
        )
    pattern = said.get("layers_pattern") or ()
    if strange := [
        name for name in ([pattern] if isinstance(pattern, str) else pattern) if not expressions.plain(name)
    ]:
        raise UnsupportedError(f"The plugin says layers_pattern={strange[0]!r:.40}.", "Only a name is supported.")
    if said.get("bias", "none") not in ("none", "all", "lora_only"):
        raise UnsupportedError(f"The plugin says bias={said['bias']!r:.40}.", "Known: none, all, lora_only.")


def _parsed(said: dict[str, Any]) -> PeftConfig:
    layers, pattern = said.get("layers_to_transform"), said.get("layers_pattern") or ()
    config = PeftConfig(
        base=str(said.get("base_model_name_or_path") or ""),
        rank=_count(said["r"]),
        alpha=float(said["lora_alpha"]),
        ranks={str(name): _count(rank) for name, rank in (said.get("rank_pattern") or {}).items()},
        alphas={str(name): float(alpha) for name, alpha in (said.get("alpha_pattern") or {}).items()},
        rank_stabilized=bool(said.get("use_rslora")),
        dora=bool(said.get("use_dora")),
        targets=_names(said.get("target_modules")),
        excluded=_names(said.get("exclude_modules")),
        layers=(layers,) if isinstance(layers, int) else tuple(int(layer) for layer in layers or ()),
        layers_pattern=(pattern,) if isinstance(pattern, str) else tuple(pattern),
        saved=tuple(said.get("modules_to_save") or ()),
    )
    config.targets_module("")  # a broken regular expression shows here
    _pattern_of("", [*config.ranks, *config.alphas])
    return config


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"a rank of {value!r:.40}")
    return value


def _names(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return r".*" if value.lower() == "all-linear" else value
    return tuple(str(name) for name in value or ())


def _named(module: str, names: str | tuple[str, ...]) -> bool:
    if isinstance(names, str):
        return expressions.fullmatch(names, module)
    return module in names or any(module.endswith(f".{name}") for name in names)


def _pattern_of(module: str, patterns: Iterable[str]) -> str:
    return next((pattern for pattern in patterns if expressions.match(r"(.*\.)?({})$", pattern, module)), module)

"""`Plugins`: the plugins of one model. Loaded once by content, named by sessions, switched without touching a weight.

A plugin is known by the hash of its files: the same content under two names is held once. Loading other content under a
name is an update: new sessions get it, running ones keep theirs, and what nothing uses any more is let go.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fluvial.adapters import peft
from fluvial.adapters.errors import IntegrityError, ModelNotFoundError, UsageError
from fluvial.encoders import towers
from fluvial.engine import state_plugin
from fluvial.engine.plugin_folders import digest_of, name_of
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder

Choice = str | Mapping[str, float] | None  # a plugin's name, or names with their weights


@dataclass(frozen=True)
class PluginInfo:
    """A plugin as it was read. `kind` is "lora" or "state"; `targets` are the published modules (or leaves) it changes;
    `base` names the model that it was trained on, by its own word."""

    name: str
    digest: str
    kind: str
    path: Path
    base: str
    targets: tuple[str, ...]
    parameters: int
    warnings: tuple[str, ...] = ()


class Blend(dict[str, float]):
    """A route: strength by the plugin's digest. Its plugins stay attached for as long as it lives."""

    names: Mapping[str, str]  # digest -> name, as they were when it was made

    @property
    def choice(self) -> dict[str, float]:
        """Strength by name."""
        return {self.names[digest]: strength for digest, strength in self.items()}

    @property
    def saved(self) -> dict[str, dict[str, Any]]:
        """What a file keeps of it: by digest, name and strength."""
        return {digest: {"name": self.names[digest], "strength": strength} for digest, strength in self.items()}


class Plugins:
    """The registry of a model."""

    def __init__(self, name: str, config: dict[str, Any], decoder: Decoder, tower: Any) -> None:
        self._name, self._config, self._decoder, self._tower = name, config, decoder, tower
        self._attached: dict[str, peft.Lora | state_plugin.Start] = {}
        self._infos: dict[str, PluginInfo] = {}
        self._users: Counter[str] = Counter()  # digest -> living routes

    # --- what there is ------------------------------------------------------------------------------------------

    def load(self, path: str | Path, name: str | None = None) -> PluginInfo:
        """Reads a PEFT folder or a state plugin, checks it against the model and makes it known as `name` (the folder's
        name by default). Under a name that is taken it is an update.

        Raises `ModelNotFoundError`, `UnsupportedError` or `IntegrityError`; nothing has changed then.
        """
        place = Path(path).expanduser()
        digest = digest_of(place)
        name = name or name_of(place)
        if digest in self._attached:
            known = next(iter(info for info in self._infos.values() if info.digest == digest), None)
            info = replace(known, name=name, path=place) if known else self._read(place, name, digest)[0]
        else:
            info, plugin = self._read(place, name, digest)
            plugin.attach(digest)
            self._attached[digest] = plugin
        before, self._infos[name] = self._infos.get(name), info
        if before is not None:
            self._release(before.digest)
        return info

    def verify(self, path: str | Path) -> PluginInfo:
        """All that `load` checks, without loading."""
        place = Path(path).expanduser()
        return self._read(place, name_of(place), digest_of(place))[0]

    def unload(self, name: str) -> None:
        """Forgets a name. Sessions that use the plugin keep it; with the last of them its memory is given back."""
        info = self[name]
        del self._infos[name]
        self._release(info.digest)

    def list(self) -> list[PluginInfo]:
        """What is loaded, in order."""
        return list(self._infos.values())

    def __getitem__(self, name: str) -> PluginInfo:
        if name not in self._infos:
            loaded = ", ".join(self._infos) or "none"
            raise ModelNotFoundError(
                f"There is no plugin '{name}'.", f"Loaded: {loaded}.", "Load it by its path first."
            )
        return self._infos[name]

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    # --- what a session uses ------------------------------------------------------------------------------------

    def route(self, choice: Choice, *, beside: Blend | None = None) -> Blend | None:
        """The route of one plugin by name, or of a blend: {"a": 0.7, "b": 0.3}. None: the base alone. A choice without
        state plugins keeps those of `beside`, the session's route so far. Errors: ModelNotFoundError, UsageError."""
        weights = {choice: 1.0} if isinstance(choice, str) else dict(choice or {})
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UsageError(f"The weight of plugin '{name}' is {weight!r:.40}.", "It must be a finite number.")
        blend: dict[str, float] = {}
        for name, weight in weights.items():  # two names of the same content add up
            digest = self[name].digest
            blend[digest] = blend.get(digest, 0.0) + weight
        names = {self[name].digest: name for name in weights}
        if beside is not None and not self.starts(blend):
            kept = self.starts(beside)
            blend, names = blend | kept, names | {digest: beside.names[digest] for digest in kept}
        return self._held(blend, names) if blend else None

    def restored(self, saved: Mapping[str, Mapping[str, Any]]) -> Blend | None:
        """The route that `Blend.saved` came from. Raises `IntegrityError` where one of its plugins is not loaded."""
        missing = [
            f"{about['name']} ({digest[:12]})" for digest, about in saved.items() if digest not in self._attached
        ]
        if missing:
            raise IntegrityError(
                f"The session was saved with plugins that are not loaded: {', '.join(missing)}.",
                "Their content must be the same.",
                "Load them first.",
            )
        strengths = {digest: float(about["strength"]) for digest, about in saved.items()}
        return self._held(strengths, {digest: str(about["name"]) for digest, about in saved.items()}) if saved else None

    def starts(self, route: Mapping[str, float] | None) -> dict[str, float]:
        """The part of a route that says how a session begins."""
        return {digest: strength for digest, strength in (route or {}).items() if digest in self._decoder.starts}

    def _held(self, strengths: dict[str, float], names: Mapping[str, str]) -> Blend:
        blend = Blend(strengths)
        blend.names = names
        self._users.update(blend.keys())
        weakref.finalize(blend, self._done, tuple(blend)).atexit = False
        return blend

    def _done(self, digests: tuple[str, ...]) -> None:
        self._users.subtract(digests)
        for digest in digests:
            self._release(digest)

    def _release(self, digest: str) -> None:
        """Detaches what no name and no route uses."""
        named = any(info.digest == digest for info in self._infos.values())
        if not named and self._users[digest] <= 0 and digest in self._attached:
            self._attached.pop(digest).detach(digest)

    def _read(self, place: Path, name: str, digest: str) -> tuple[PluginInfo, peft.Lora | state_plugin.Start]:
        plugin: peft.Lora | state_plugin.Start
        if (file := state_plugin.file_of(place)) is not None:
            plugin = state_plugin.read(file, self._decoder)
            info = PluginInfo(name, digest, "state", place, plugin.base, tuple(plugin.leaves), 0)
            info = replace(info, parameters=sum(leaf.numel() for leaf in plugin.leaves.values()))
        else:
            modules = modules_of(self._config, self._decoder, self._tower)
            plugin = peft.read(place, modules, self._decoder.dtype)
            base, warnings = plugin.config.base, plugin.warnings
            info = PluginInfo(name, digest, "lora", place, base, plugin.modules, plugin.parameters, warnings)
        if info.base and Path(info.base).name != Path(self._name).name:
            other = f"It was trained on {info.base}; this is {self._name}."
            info = replace(info, warnings=(other, *info.warnings))
        return info, plugin


def modules_of(config: dict[str, Any], decoder: Decoder, tower: Any) -> peft.Modules:
    """A model's modules with the plans of their published names."""
    found = {"decoder": (decoder, checkpoints.family(config["model_type"]).plan(config))}
    return found if tower is None else found | {"vision": (tower, towers.plan_of(config))}

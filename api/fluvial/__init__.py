"""Fluvial: chat with images, video and very long streams, in constant memory.

    import fluvial
    engine = fluvial.load("pebble")
    with engine.session() as s:
        s.push(fluvial.Image("photo.jpg"))
        for event in s.ask("What colour is the circle?"):
            print(event.text, end="")

Names are imported when they are first used: `import fluvial` and `fluvial --help` do not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluvial.adapters.errors import (
        FluvialError,
        IntegrityError,
        MediaError,
        ModelNotFoundError,
        OutOfMemoryError,
        UnsupportedError,
        UsageError,
    )
    from fluvial.encoders.economy import Economy
    from fluvial.encoders.frame import Frame, Gap
    from fluvial.engine.cache.config import Cache
    from fluvial.engine.engine import Engine, load
    from fluvial.engine.events import Done, Event, PushResult, Token, Usage
    from fluvial.engine.live import LiveSession
    from fluvial.engine.live_async import AsyncSession
    from fluvial.engine.live_worker import LiveStats
    from fluvial.engine.media import Image, Video
    from fluvial.engine.model import Model, bundled, load_model
    from fluvial.engine.plugins import PluginInfo
    from fluvial.engine.session import Session, Snapshot
    from fluvial.engine.watch import Observation, Watch

__version__ = "0.1.0"

_HOME = {
    "fluvial.adapters.errors": (
        "FluvialError",
        "IntegrityError",
        "MediaError",
        "ModelNotFoundError",
        "OutOfMemoryError",
        "UnsupportedError",
        "UsageError",
    ),
    "fluvial.encoders.economy": ("Economy",),
    "fluvial.encoders.frame": ("Frame", "Gap"),
    "fluvial.engine.cache.config": ("Cache",),
    "fluvial.engine.engine": ("Engine", "load"),
    "fluvial.engine.events": ("Done", "Event", "PushResult", "Token", "Usage"),
    "fluvial.engine.live": ("LiveSession",),
    "fluvial.engine.live_async": ("AsyncSession",),
    "fluvial.engine.live_worker": ("LiveStats",),
    "fluvial.engine.media": ("Image", "Video"),
    "fluvial.engine.model": ("Model", "bundled", "load_model"),
    "fluvial.engine.plugins": ("PluginInfo",),
    "fluvial.engine.session": ("Session", "Snapshot"),
    "fluvial.engine.watch": ("Observation", "Watch"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = [
    "AsyncSession",
    "Cache",
    "Done",
    "Economy",
    "Engine",
    "Event",
    "FluvialError",
    "Frame",
    "Gap",
    "Image",
    "IntegrityError",
    "LiveSession",
    "LiveStats",
    "MediaError",
    "Model",
    "ModelNotFoundError",
    "Observation",
    "OutOfMemoryError",
    "PluginInfo",
    "PushResult",
    "Session",
    "Snapshot",
    "Token",
    "UnsupportedError",
    "Usage",
    "UsageError",
    "Video",
    "Watch",
    "__version__",
    "bundled",
    "load",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fluvial' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__

"""From a model's name to its place: a path, a bundled model, or `org/name` on the Hugging Face hub.

The hub is asked only for a name that is none of the others, and only for JSON, templates, tokenizers and weights;
code is never downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fluvial.adapters.errors import ModelNotFoundError
from fluvial.adapters.pth import torch_file
from fluvial.models import checkpoints

BUNDLED = Path(checkpoints.__file__).parents[1] / "pebble"
DEFAULT = "delta"
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
CARD = "README.md"  # says the license
WEIGHTS, OLD_WEIGHTS = ("*.safetensors",), ("pytorch_model.bin",)  # the old ones only where there are no others
NOT_OURS = ("*/*", "consolidated*")  # other frameworks' copies of the same weights
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def bundled() -> list[str]:
    """The names of the bundled models, the default first."""
    found = sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))
    names = [f"pebble/{variant}" for variant in found if variant != DEFAULT]
    return ["pebble", *names] if DEFAULT in found else names


def resolve(name: str | Path, *, offline: bool = False, weights: bool = True) -> Path:
    """The folder (or `.pth` file) of a path, a bundled model's name or a hub name, or a `ModelNotFoundError`.

    `offline` looks in the hub's cache only, as HF_HUB_OFFLINE=1 does; without `weights` only the small files are
    fetched (config, tokenizer, template, model card).
    """
    text = str(name)
    if text == "pebble":
        return BUNDLED / DEFAULT
    if text in bundled():
        return BUNDLED / text.removeprefix("pebble/")
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file() or (folder.exists() and torch_file(folder) is not None):
        return folder
    if folder.is_dir():
        raise ModelNotFoundError(f"No model '{text}'.", f"{folder} has no config.json.", _hint())
    if isinstance(name, str) and _REPOSITORY.fullmatch(text) and not text.startswith("pebble/"):
        return _from_hub(text, offline, weights)
    raise ModelNotFoundError(f"No model '{text}'.", "It is neither a folder, a bundled model nor a hub name.", _hint())


def _hint() -> str:
    return f"Bundled: {', '.join(bundled())}."


def _from_hub(repository: str, offline: bool, weights: bool) -> Path:
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ModelNotFoundError(
            f"No folder '{repository}', and hub names need huggingface_hub.", hint="pip install huggingface_hub"
        ) from error
    offline = offline or bool(hub.constants.HF_HUB_OFFLINE)

    def fetched(*patterns: str) -> Path:
        allow, ignore = list(patterns), list(NOT_OURS)
        return Path(
            hub.snapshot_download(repository, allow_patterns=allow, ignore_patterns=ignore, local_files_only=offline)
        )

    try:
        folder = fetched(*SMALL_FILES, *(WEIGHTS if weights else (CARD,)))
        if weights and not any(folder.glob("*.safetensors")):
            folder = fetched(*SMALL_FILES, *OLD_WEIGHTS)
    except Exception as error:  # the hub's client has no common base: HTTP, cache, validation and socket errors
        raise ModelNotFoundError(f"No model '{repository}'.", *_reason(error, offline)) from error
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"No model '{repository}'.", "The hub's repository has no config.json.", _hint())
    return folder


def _reason(error: Any, offline: bool) -> tuple[str, str]:
    """Why the hub gave nothing, and what to do."""
    kind = type(error).__name__
    if offline:
        return "It is not in the hub's cache, and Fluvial is offline.", "Download it once while online."
    if kind == "GatedRepoError":
        return "Its owners ask you to accept terms first.", "Accept them on the hub, then `hf auth login`."
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError"):
        return "It is no folder here, and the hub has no such repository, or hides it.", "For a private one, log in."
    first = next(iter(str(error).strip().splitlines()), "")
    return f"It is no folder here, and the hub cannot be asked: {kind}: {first:.200}", "Is there a connection?"

"""Reading published weights: safetensors files by tensor name, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluvial.adapters.errors import IntegrityError, ModelNotFoundError

Rename = Callable[[str], "str | None"]  # name on disk -> name in the module; None: not this module's


class Weights:
    """The tensors of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise IntegrityError(f"{index} is damaged.", str(error), "Download the model again.") from error
        else:
            shards = ["model.safetensors"]
        self._file_of: dict[str, Path] = {}
        for shard in shards:
            path = folder / shard
            # an index is data: it must not lead out of the folder
            if not path.is_file() or (path.resolve().parent != folder.resolve() and not path.is_symlink()):
                raise ModelNotFoundError(f"{folder} has no {shard}.", hint="Download the model again.")
            with _opened(path) as file:
                self._file_of |= {name: path for name in file.keys()}  # noqa: SIM118

    def names(self) -> list[str]:
        return list(self._file_of)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every name with its tensor, read when it is reached."""
        for path in dict.fromkeys(self._file_of.values()):
            with _opened(path) as file:
                for name in (n for n, p in self._file_of.items() if p == path):
                    yield name, file.get_tensor(name)


def fill(modules: dict[str, tuple[nn.Module, Rename]], weights: Weights) -> None:
    """Copies every tensor to the module whose `Rename` claims it.

    Raises `IntegrityError` naming the tensor for one that is missing, extra or of the wrong shape; the check runs
    before anything is copied for names, and per tensor for shapes.
    """
    targets = {
        key: dict(module.named_parameters()) | dict(module.named_buffers()) for key, (module, _) in modules.items()
    }
    plan: dict[str, Tensor] = {}
    claimed: set[tuple[str, str]] = set()
    extra = []
    for name in weights.names():
        found = [(key, new) for key, (_, rename) in modules.items() if (new := rename(name)) is not None]
        if len(found) != 1 or found[0][1] not in targets[found[0][0]]:
            extra.append(name)
            continue
        claimed.add(found[0])
        plan[name] = targets[found[0][0]][found[0][1]]
    missing = [f"{key}.{name}" for key, names in targets.items() for name in names if (key, name) not in claimed]
    for problem, names in (("lacks", missing), ("has unknown", extra)):
        if names:
            raise IntegrityError(
                f"The checkpoint in {weights.folder} {problem} tensors: {', '.join(sorted(names)[:5])}"
                f"{' ...' if len(names) > 5 else ''} ({len(names)}).",
                hint="Does config.json belong to these weights?",
            )
    with torch.no_grad():
        for name, tensor in weights.tensors():
            target = plan[name]
            if tensor.shape != target.shape:
                raise IntegrityError(
                    f"{name} has shape {list(tensor.shape)}, the config asks for {list(target.shape)}.",
                    hint="Does config.json belong to these weights?",
                )
            target.copy_(tensor)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged.", str(error), "Download the model again.") from error

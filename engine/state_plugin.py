"""State plugins: what a recurrent model remembers before its first token, learned like weights (state tuning).

A safetensors file with the recurrent leaves that differ from an empty state, named as `State` names them ("3.S") with
one row each, and the base model's name in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.models.attention import Attention
from fluvial.models.decoder import Decoder
from fluvial.models.parallel import Parallel
from fluvial.models.state import wide
from fluvial.models.state_file import read_checked, write_atomically

KIND, FILE = "fluvial-initial-state", "initial_state.safetensors"


@dataclass(frozen=True)
class Start:
    """A state plugin that fits a decoder; `attach` makes sessions whose route names `key` begin there."""

    decoder: Decoder
    leaves: Mapping[str, Tensor]
    base: str

    def attach(self, key: str) -> None:
        self.decoder.starts[key] = self.leaves

    def detach(self, key: str) -> None:
        self.decoder.starts.pop(key, None)


def recurrent(decoder: Decoder) -> dict[str, Tensor]:
    """The empty leaves that an initial state may fill, [1, ...] by name: not attention's, which hold tokens' rows."""
    found: dict[str, Tensor] = {}
    for name, kept in decoder.init_state().leaves.items():
        leaf = wide(kept)
        block, branch, *_ = name.split(".")
        mixer = decoder.blocks[int(block)].mixer
        owner = mixer.branches[branch] if isinstance(mixer, Parallel) else mixer
        if isinstance(leaf, Tensor) and not isinstance(owner, Attention):
            found[name] = leaf
    return found


def write(path: Path, leaves: Mapping[str, Tensor], *, base: str = "") -> None:
    """Writes a state plugin: leaves [1, ...] by name, of the model `base`."""
    write_atomically(path, KIND, leaves, {"base": base})


def file_of(path: Path) -> Path | None:
    """The state plugin's file, if `path` is one or holds one."""
    if path.is_dir():
        return path / FILE if (path / FILE).is_file() else None
    return path if path.suffix == ".safetensors" and path.is_file() else None


def read(path: Path, decoder: Decoder) -> Start:
    """Raises `UnsupportedError` for a model without recurrent state, `IntegrityError` for damage or another model."""
    tensors, about = read_checked(path, (KIND,))
    empty = recurrent(decoder)
    if not empty:
        raise UnsupportedError(
            "A state plugin needs a recurrent model.",
            "This one keeps rows of attention only, and has no state to begin from.",
            "Use a LoRA plugin.",
        )
    for name, tensor in tensors.items():
        if name not in empty or tensor.shape != empty[name].shape:
            raise IntegrityError(
                f"The plugin sets {name} to {list(tensor.shape)}.",
                f"The model has {list(empty[name].shape)}." if name in empty else "The model has no such state.",
                "It was trained for another base model.",
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise IntegrityError(f"{name} in {path} holds no finite numbers.", hint="Get the plugin again.")
    if not any(tensor.any() for tensor in tensors.values()):
        raise IntegrityError("The plugin changes nothing.", "It holds no state, or only zeros.")
    return Start(decoder, {name: tensor.to(empty[name]) for name, tensor in tensors.items()}, about.get("base", ""))

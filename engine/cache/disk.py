"""`Disk`: the second tier, a folder of checksummed files that several processes may share.

    <key>-<symbols>-<chain>.safetensors  the whole state behind a chain
    <medium>.safetensors                 a medium's embeddings

Names are hashes, so that nothing said can be read from them. Who writes holds the folder's lock, removes the files that
were not used for longest until the new one fits, and renames it into place; who reads takes no lock. A damaged file is
removed and counts as a miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.encoders.layout import Layout
from fluvial.engine.cache.chain import Run, Symbol
from fluvial.engine.cache.key import Key, digest
from fluvial.engine.media import Facts, Step
from fluvial.models.state import State
from fluvial.models.state_file import read_checked, write_atomically

if sys.platform != "win32":
    import fcntl

STATE, MEDIUM = "fluvial-cached-state", "fluvial-cached-medium"
HEADER = 64 * 1024  # bytes of a file besides its tensors and metadata, at most


@dataclass(frozen=True)
class Stored:
    """A state from a file: `runs` lead to it."""

    runs: tuple[Run, ...]
    state: State
    logits: Tensor


class Disk:
    """At most `size` bytes of files in `folder`; what is read goes to `device`. Errors: UsageError for a folder that
    cannot be made."""

    def __init__(self, folder: Path, size: int, device: torch.device) -> None:
        if sys.platform == "win32":
            raise UnsupportedError("The cache needs file locks to share a folder.", "This system has none.")
        self.folder, self.size, self._device = folder, size, device
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what conversations were about
            with self._locked():
                pass
        except OSError as error:
            raise UsageError(f"Cannot keep a cache in {folder}.", str(error), "Choose a writable folder.") from error
        self.problems: list[str] = []  # since they were last taken

    # --- states -------------------------------------------------------------------------------------------------

    def put(self, key: Key, runs: Sequence[Run], state: State, logits: Tensor) -> None:
        """Writes a state, unless it is there."""
        symbols = tuple(symbol for run in runs for symbol in run.symbols)
        (hashed,) = _hashes(symbols, [len(symbols)])
        tensors, about = state.pack()
        lengths = json.dumps([(len(run.symbols), run.end, run.shift) for run in runs])
        named = {f"state.{name}": tensor for name, tensor in tensors.items()}
        name = f"{_short(key)}-{len(symbols)}-{hashed}"
        self._write(name, STATE, named | {"logits": logits}, about | {"runs": lengths})

    def find(self, key: Key, symbols: tuple[Symbol, ...], beyond: int, model: str) -> Stored | None:
        """The state behind the most of `symbols`, and more than `beyond` of them."""
        prefix = f"{_short(key)}-"
        names = {entry.name for entry in self._files() if entry.name.startswith(prefix)}
        counts = {int(name.split("-")[1]) for name in names}
        wanted = sorted(count for count in counts if beyond < count <= len(symbols))
        hashes = zip(wanted, _hashes(symbols, wanted), strict=True)
        for count, hashed in reversed(list(hashes)):
            name = f"{prefix}{count}-{hashed}"
            if f"{name}.safetensors" in names and (found := self._read(name, STATE)) is not None:
                tensors, about = found
                parts = {n.removeprefix("state."): t for n, t in tensors.items() if n != "logits"}
                runs, at = [], 0
                for length, end, shift in json.loads(about["runs"]):
                    runs.append(Run(symbols[at : at + length], end, tuple(shift)))
                    at += length
                return Stored(tuple(runs), State.unpack(parts, about, model), tensors["logits"])
        return None

    # --- media --------------------------------------------------------------------------------------------------

    def put_medium(self, key: str, facts: Facts, steps: Sequence[Step]) -> None:
        """Writes a medium's embeddings, unless they are there."""
        tensors, words = {}, []
        for i, (x, layout) in enumerate(steps):
            tensors[f"{i}.x"] = x
            if layout.positions is not None:
                tensors[f"{i}.positions"] = layout.positions
            words.append((layout.before, layout.after, layout.lead))
        self._write(key, MEDIUM, tensors, {"facts": json.dumps(asdict(facts)), "words": json.dumps(words)})

    def find_medium(self, key: str) -> tuple[Facts, tuple[Step, ...]] | None:
        """What was kept of a medium."""
        if (found := self._read(key, MEDIUM)) is None:
            return None
        tensors, about = found
        steps = []
        for i, (before, after, lead) in enumerate(json.loads(about["words"])):
            layout = Layout(tensors.get(f"{i}.positions"), tuple(before), tuple(after), lead)
            steps.append((tensors[f"{i}.x"], layout))
        return Facts(**json.loads(about["facts"])), tuple(steps)

    # --- files --------------------------------------------------------------------------------------------------

    def used(self) -> int:
        """Bytes of all files."""
        return sum(entry.stat().st_size for entry in self._files())

    def _files(self) -> list[os.DirEntry[str]]:
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            return [entry for entry in entries if entry.name.endswith(".safetensors")]
        return []

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _read(self, name: str, kind: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            tensors, about = read_checked(path, (kind,))
            os.utime(path)
        except (IntegrityError, OSError):
            if path.is_file():
                self.problems.append("a file on disk was damaged")
                path.unlink(missing_ok=True)
            return None
        # copies, not views of the file
        return {name: tensor.to(self._device, copy=True) for name, tensor in tensors.items()}, about

    def _write(self, name: str, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        path = self._path(name)
        need = sum(t.nbytes for t in tensors.values()) + sum(len(text) for text in about.values()) + HEADER
        try:
            if path.is_file():
                os.utime(path)
                return
            with self._locked():
                if self._fits(need):
                    write_atomically(path, kind, tensors, about)
                else:
                    self.problems.append("there was no room on disk to keep it")
        except (OSError, UsageError) as error:
            self.problems.append(f"the disk could not be written: {type(error).__name__}")

    def _fits(self, need: int) -> bool:
        """Makes room, with the lock held; what writers left that were killed goes too."""
        for left in self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        found = []
        for entry in self._files():
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total + need <= self.size or need > self.size:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total + need <= self.size

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _short(key: Key) -> str:
    return digest(repr((key, torch.__version__)))[:24]


def _hashes(symbols: Sequence[Symbol], counts: Sequence[int]) -> list[str]:
    """Hashes of the first so many symbols, for rising counts."""
    whole, at, found = hashlib.blake2b(digest_size=16), 0, []
    for count in counts:
        whole.update("".join(f"{symbol!r}," for symbol in symbols[at:count]).encode())
        at = count
        found.append(whole.hexdigest())
    return found

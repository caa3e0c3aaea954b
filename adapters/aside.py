"""Weights that are needed now and then lie aside: in a file without a name, mapped, so that they take memory only while
they are in use (`pages.release`)."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

LARGE = 1 << 20  # bytes from which on a tensor is worth a page of its own
FOLDER = Path("/var/tmp")  # lies on a disk, where there is one; other temporary folders may be memory


class Aside:
    """Room for at most `nbytes` of tensors; none where no file can be made, and then `path` is None. The file has no
    name from the beginning, so nothing stays of it, and goes with the last of its tensors."""

    def __init__(self, nbytes: int) -> None:
        self.path: Path | None = None
        self._fd, self._room, self._end = -1, 0, 0
        if not nbytes or sys.platform != "linux":  # elsewhere nothing can be let go
            return
        try:
            folder = FOLDER if os.access(FOLDER, os.W_OK) else Path(tempfile.gettempdir())
            self._fd, name = tempfile.mkstemp(prefix="fluvial-", dir=folder)
            os.unlink(name)
            os.truncate(self._fd, nbytes)  # takes no room on the disk yet
            self._mapped = mmap.mmap(self._fd, 0)
        except OSError:  # no folder may be written, say
            return
        self.path, self._room = Path(name), nbytes

    def keep(self, tensor: Tensor) -> Tensor:
        """The same values from the file; the tensor itself if it is small, or there is no room."""
        start, size = self._end, tensor.nbytes
        if size < LARGE or not tensor.is_cpu or start + size > self._room:
            return tensor
        values, done = tensor.contiguous().flatten().view(torch.uint8).numpy().data, 0
        try:
            while done < size:  # not through the mapping, which would fill memory
                done += os.pwrite(self._fd, values[done:], start + done)
        except OSError:  # a full disk, say
            return tensor
        self._end = -(-(start + size) // mmap.PAGESIZE) * mmap.PAGESIZE
        return torch.frombuffer(self._mapped, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)

    def close(self) -> None:
        """No more tensors; those that it has stay."""
        if self._fd >= 0:
            os.close(self._fd)

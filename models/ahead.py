"""`Ahead`: a light trained head that drafts from the decoder's hidden state, in the manner of EAGLE (Li et al. 2024)
without a memory of its own: one cell, applied again and again.

    h' = h + W_out silu(W_in [norm(e); norm(h)]);  the decoder's own head on h' gives the token after the next one

h is what the decoder returns for token t, e its embedding of token t + 1; a chain goes on with h' in place of h and the
guessed token as the next one.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.linear import Linear
from fluvial.adapters.norm import RMSNorm
from fluvial.models.state_file import read_checked, write_atomically

FILE = "draft_head.safetensors"  # beside a model's weights
KIND = "fluvial-draft-head"


class Ahead(nn.Module):
    """The cell for a decoder of width `d_model`; `width` hidden units."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.d_model, self.width = d_model, width
        self.norm_embedding, self.norm_hidden = RMSNorm(d_model), RMSNorm(d_model)
        self.inner, self.outer = Linear(2 * d_model, width), Linear(width, d_model)

    def forward(self, hidden: Tensor, following: Tensor) -> Tensor:
        """hidden [..., D] of some tokens, embeddings [..., D] of those that follow them -> hidden' [..., D], ready for
        `decoder.logits`."""
        inner = self.inner(torch.cat([self.norm_embedding(following), self.norm_hidden(hidden)], -1))
        return hidden + self.outer(F.silu(inner))

    def save(self, folder: Path) -> None:
        """Writes the head beside a model's weights, in bf16, atomically."""
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in self.state_dict().items()}
        write_atomically(folder / FILE, KIND, tensors, {"d_model": str(self.d_model), "width": str(self.width)})

    @classmethod
    def load(cls, folder: Path, d_model: int, dtype: torch.dtype) -> Ahead:
        """The head beside a model's weights, which computes in `dtype`. Errors: UnsupportedError where there is none,
        IntegrityError for a damaged file or a head for another model."""
        path = folder / FILE
        if not path.is_file():
            raise UnsupportedError(
                f"{folder.name} has no trained head for drafting.",
                f"There is no {path}.",
                "Train one as examples/drafts does, or draft with 'ngram'.",
            )
        tensors, about = read_checked(path, (KIND,))
        try:
            head = cls(int(about["d_model"]), int(about["width"]))
            head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except (KeyError, ValueError, RuntimeError) as error:
            raise IntegrityError(f"{path} is damaged.", f"{error!r:.200}", "Train it again.") from error
        if head.d_model != d_model:
            raise IntegrityError(
                f"{path} is for another model.", f"It is {head.d_model} wide, this is {d_model}.", "Train it again."
            )
        return head.to(dtype).eval().requires_grad_(False)

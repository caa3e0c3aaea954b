"""`Decoder`: embedding, a flat list of blocks x += mixer(norm(x)), final norm, head.

A Transformer is [attention, swiglu] * n, Mamba-2 [mamba2] * n, RWKV-7 [time, channel] * n, Qwen3.5 [delta,
swiglu, delta, swiglu, delta, swiglu, attention, swiglu] * n: the block list makes hybrids free. The decoder
returns hidden states; the head runs only where logits are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal, overload

import torch
from torch import Tensor, nn

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.adapters.fingerprint import Fingerprint, add_tensors
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.lora import Route, weighted
from fluvial.adapters.module import Module
from fluvial.adapters.norm import norm
from fluvial.adapters.recipes import formats_in
from fluvial.models import (  # noqa: F401  (they register)
    attention,
    feed_forward,
    gated_delta,
    mamba,
    mamba2,
    parallel,
    rwkv7,
    short_conv,
)
from fluvial.models.config import BlockConfig, DecoderConfig
from fluvial.models.journal import Final, Journal, Pending, Rounding, TreeJournal
from fluvial.models.mixer import Mixer, Step, build
from fluvial.models.packed_leaves import PackedLeaves
from fluvial.models.replay import Replays
from fluvial.models.rounded import Rounded, is_memory, known
from fluvial.models.state import Leaf, State, by_block, wide
from fluvial.models.tree import Tree

__all__ = ["Block", "BlockConfig", "Decoder", "DecoderConfig"]


class Block(Module):
    """x + mixer(norm(x)), or x + norm(mixer(x))."""

    def __init__(self, config: DecoderConfig, block: BlockConfig) -> None:
        super().__init__()
        self.norm = norm(config.norm, config.d_model, config.norm_eps)
        self.mixer: Mixer = build(block.kind, config.d_model, **block.options)
        self.scale, self.norm_after, self.wide = block.scale, block.norm_after, config.wide_sum

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        inner = x if self.norm_after else self.norm(x)
        if self.wide:  # x is wider than what the mixer computes in
            inner = inner.to(self.norm.gain.dtype)
        y, pending = self.mixer(inner, state, step)
        return torch.add(x, self.norm(y) if self.norm_after else y, alpha=self.scale), pending


class Decoder(Module):
    """Hidden states x [B, T, D] in, hidden states and the next `State` (or a `Journal`) out; one forward for
    every T >= 1."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab, config.d_model)
        self.embed_norm = norm(config.norm, config.d_model, config.norm_eps) if config.embed_norm else None
        self.blocks = nn.ModuleList(Block(config, block) for block in config.blocks)
        self.norm = norm(config.norm, config.d_model, config.norm_eps)
        self.head = None if config.tied_head else Linear(config.d_model, config.vocab)
        self.starts: dict[str, Mapping[str, Tensor]] = {}  # state plugin -> leaf -> [1, ...]
        self.kv = "exact"  # how attention keeps its rows: models.kv
        self.state_dtype = "fp32"  # what memories are kept in between forwards: rounded.STATE_DTYPES
        self._identity: Fingerprint | str = ""  # what states carry
        self._replays = Replays()

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return self.norm.gain.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.gain.device

    def embed(self, ids: Tensor, route: Route | None = None) -> Tensor:
        """ids int64 [B, T] -> x [B, T, D]."""
        x, dtype, scale = self.embedding.lookup(ids, route), self.dtype, self.config.embed_scale
        x = x if x.dtype is dtype else x.to(dtype)
        return x if scale == 1 else x * scale

    def logits(self, hidden: Tensor, route: Route | None = None, rows: slice | Tensor | None = None) -> Tensor:
        """hidden [..., D] -> logits [..., vocab]; with `rows`, those of these ids only, a slice or int64 [n]."""
        head: Linear = self.embedding if self.head is None else self.head
        logits = head(hidden, route) if rows is None else head.some(hidden, rows, route)
        scale = self.config.logit_scale
        return logits if scale == 1 else logits * scale

    def init_state(self, batch: int = 1, route: Route | None = None) -> State:
        """The state of `batch` rows before their first token: empty, or what the routed state plugins learned."""
        leaves: dict[str, Leaf] = {}
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            for name, leaf in block.mixer.init_state(batch, self.dtype, self.device).items():
                leaves[f"{i}.{name}"] = leaf
        for plugin, strength in (route or {}).items():
            for name, start in self.starts.get(plugin, {}).items():
                empty = leaves[name]
                assert isinstance(empty, Tensor)
                leaves[name] = empty + weighted(start.expand_as(empty), strength)
        if self.state_dtype != "fp32":
            memories = {name: leaf for name, leaf in leaves.items() if is_memory(name) and isinstance(leaf, Tensor)}
            leaves |= {name: Rounded.of(leaf, self.state_dtype) for name, leaf in memories.items()}
        return State(leaves, (0,) * batch, self._identity, dtype=self.state_dtype)

    @overload
    def forward(
        self,
        x: Tensor,
        state: State | None = ...,
        *,
        lengths: Sequence[int] | None = ...,
        positions: Tensor | None = ...,
        route: Route | None = ...,
        journal: Literal[False] = ...,
    ) -> tuple[Tensor, State]: ...
    @overload
    def forward(
        self,
        x: Tensor,
        state: State | None = ...,
        *,
        lengths: Sequence[int] | None = ...,
        positions: Tensor | None = ...,
        route: Route | None = ...,
        journal: Literal[True],
    ) -> tuple[Tensor, Journal]: ...
    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        lengths: Sequence[int] | None = None,
        positions: Tensor | None = None,
        route: Route | None = None,
        journal: bool = False,
    ) -> tuple[Tensor, State | Journal]:
        """x [B, T, D] -> hidden [B, T, D] (normed, ready for `logits`) and the state after it. With n deepstack parts
        behind it, x is [B, T, D (1 + n)]; text among media has zeros there.

        `lengths[b]` of the T tokens are real, the rest is padding at the end that no state ever sees. `positions`
        int64 [B, T] or [3, B, T] (time, row, column) rotate media tokens; text goes on behind the furthest of them
        (`state.rotary`). With `journal` nothing is committed: `journal.commit(n)` gives the state after any prefix.
        """
        batch, tokens = x.shape[:2]
        state = self._checked(state, batch, tokens, route)
        if x.shape[2] not in (width := self.config.d_model, width * (1 + len(self.config.deepstack))):
            raise UsageError(f"The embeddings are {x.shape[2]} wide, the model {width}.")
        limit = (tokens,) * batch if lengths is None else tuple(int(n) for n in lengths)
        if len(limit) != batch or any(not 0 <= n <= tokens for n in limit):
            raise UsageError(f"lengths {limit} do not fit an input of {batch} rows with {tokens} tokens.")
        if positions is not None and tuple(positions.shape) not in ((batch, tokens), (3, batch, tokens)):
            raise UsageError(f"positions {list(positions.shape)} do not fit {batch} rows with {tokens} tokens.")
        ragged = None if all(n == tokens for n in limit) else limit
        step = Step(state.position, tokens, x.device, ragged, journal, route, state.rotary, positions)
        found = self._replays.run(self, self._through, x, state, step) if x.shape[2] == width else None
        hidden, after = found or self._through(x, state.leaves, step)
        if isinstance(after, PackedLeaves):
            return hidden, Journal(state, {}, limit, positions).moved(limit, after)
        result = Journal(state, after, limit, positions)
        return hidden, result if journal else result.commit(limit)

    def expect(self, batch: int, tokens: int, *, journal: bool) -> None:
        """Such a forward will come again and again: the next one is recorded already (`models.replay`)."""
        self._replays.expect(torch.Size((batch, tokens, self.config.d_model)), journal)

    @property
    def treeless(self) -> set[str]:
        """The kinds of blocks here that have no form for `tree`."""
        mixers = [block.mixer for block in self.blocks if isinstance(block, Block)]
        return {block.label for block, mixer in zip(self.config.blocks, mixers, strict=True) if not mixer.trees}

    def tree(
        self, x: Tensor, parents: Sequence[int], state: State | None = None, *, route: Route | None = None
    ) -> tuple[Tensor, TreeJournal]:
        """x [B, T, D] of the nodes of a tree, `parents[t]` < t or -1 for the state's last token -> hidden [B, T, D]:
        for each node what a forward along its root path gives; and the journal that commits any root path. Errors:
        UsageError, UnsupportedError where a mixer has no such form (`treeless`)."""
        batch, tokens = x.shape[:2]
        state, tree = self._checked(state, batch, tokens, route), Tree(parents, x.device)
        if (tokens, x.shape[2]) != (len(tree), self.config.d_model):
            raise UsageError(f"Embeddings {list(x.shape)} do not fit a tree of {len(tree)} nodes.")
        if self.treeless:
            raise UnsupportedError(f"No form for trees in: {', '.join(sorted(self.treeless))}.", hint="Draft a chain.")
        step = Step(state.position, tokens, x.device, None, True, route, state.rotary, tree=tree)
        hidden, pending = self._through(x, state.leaves, step)
        return hidden, TreeJournal(state, pending, tree)

    def _through(self, x: Tensor, leaves: Mapping[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        """All blocks on x: hidden [B, T, D], and what each leaf becomes."""
        limit = step.lengths or (step.tokens,) * x.shape[0]
        x, *parts = step.blank(x).split(self.config.d_model, -1)
        deep = dict(zip(self.config.deepstack, parts, strict=False))  # all of them, or none
        x = x if self.embed_norm is None else step.blank(self.embed_norm(x))
        if self.config.wide_sum:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        pending: dict[str, Pending] = {}
        for i, (block, own) in enumerate(zip(self.blocks, by_block(leaves, len(self.blocks)), strict=True)):
            x, after = block(x, {name: wide(leaf) for name, leaf in own.items()}, step)
            if i in deep:
                x = x + deep[i]
            for name, leaf in after.items():
                if isinstance(before := leaves[f"{i}.{name}"], Rounded):
                    leaf = Rounding(leaf, before)
                pending[f"{i}.{name}"] = leaf if step.journal else Final(leaf.commit(limit))  # now: its rows can go
        return self.norm(x).to(self.dtype), pending

    def _checked(self, state: State | None, batch: int, tokens: int, route: Route | None) -> State:
        if tokens < 1:
            raise UsageError("A forward needs at least one token.")
        if state is None:
            return self.init_state(batch, route)
        if state.batch != batch:
            raise UsageError(f"The state has {state.batch} rows, the input {batch}.")
        self.check(state)
        return state

    def check(self, state: State) -> None:
        """Raises `IntegrityError` for a state of another model, or kept in another precision."""
        if state.model != self._identity:
            raise IntegrityError("The state belongs to another model.", hint="Start a new session for this model.")
        if state.dtype != self.state_dtype:
            raise IntegrityError(
                f"The state is kept in {state.dtype}, this model keeps {self.state_dtype}.",
                hint=f"Load the model with state_dtype '{state.dtype}'.",
            )

    def keep(self, dtype: str) -> None:
        """From now on states keep their memories in "fp32", "bf16" or "int8" (`models.rounded`). Errors: UsageError for
        another name, UnsupportedError for a model without memories."""
        empty = self.init_state()
        if known(dtype) != "fp32" and not any(map(is_memory, empty.leaves)):
            raise UnsupportedError(
                f"There is nothing to keep in {dtype}.",
                "This model has rows of attention or of convolutions, and no memory that sums up over tokens.",
                "Load it without state_dtype.",
            )
        self.state_dtype = dtype

    def keep_rows(self, mode: str) -> None:
        """From now on attention keeps its rows as the mode of `models.kv` says. Errors: UsageError for another name,
        UnsupportedError for a model without rows that grow."""
        kept = [layer.keep(mode) for layer in self.modules() if isinstance(layer, attention.Attention)]
        if mode != "exact" and not any(kept):
            raise UnsupportedError(
                f"There are no rows to keep as '{mode}'.", "This model has constant memory.", "Load it without kv."
            )
        self.kv = mode

    def identify(self) -> None:
        """From now on states carry a hash of the config and of the weights as they are when it is first needed."""
        self._identity = Fingerprint(self._hashed)

    def fingerprint(self) -> str:
        """That hash, computed once; states made before `identify` or this was called carry none."""
        if not isinstance(self._identity, Fingerprint):
            self.identify()
        return str(self._identity)

    def _hashed(self) -> str:
        config = json.dumps(asdict(self.config), sort_keys=True, default=str)
        digest = hashlib.blake2b(config.encode(), digest_size=20)
        digest.update(self.kv.encode())
        add_tensors(digest, self)
        if formats := formats_in({"decoder": self}):
            digest.update(repr(sorted(formats.items())).encode())
        return digest.hexdigest()

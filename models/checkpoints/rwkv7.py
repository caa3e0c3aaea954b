"""RWKV-7 (`model_type` rwkv7): the safetensors that flash-linear-attention's converter publishes, and official `.pth`.

An official file has no config: `inferred` reads it from the tensors' shapes, in the words of the other layout. Both
name tables are one, because no name means two things. Our blocks alternate: layer i is block 2i (time mix) and 2i + 1
(channel mix). Six mixing vectors of a layer are the rows r, w, k, v, a, g of one parameter here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.checkpoints.mamba import only
from fluvial.models.decoder import BlockConfig, DecoderConfig

MIXES = "rwkvag"
OUTSIDE = {
    **{f"{name}.weight": "embedding.weight" for name in ("emb", "model.embeddings")},
    **{f"{name}.weight": "norm.gain" for name in ("ln_out", "model.norm")},
    **{f"{name}.bias": "norm.shift" for name in ("ln_out", "model.norm")},
    **{f"{name}.weight": "head.weight" for name in ("head", "lm_head")},
}
NORMS = {"ln0": None, "pre_norm": None, "ln1": 0, "attn_norm": 0, "ln2": 1, "ffn_norm": 1}  # which of the two blocks
PROJECTIONS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
PROJECTIONS |= {ours: ours for ours in PROJECTIONS.values()}
LOW_RANK = {"0.weight": "A.weight", "2.weight": "B.weight", "2.bias": "base"}
OFFICIAL_LOW_RANK = {"0": "base", "1": "A.weight", "2": "B.weight"}
NAME = re.compile(r"(?:model\.layers|blocks)\.(\d+)\.(\w+)\.(.+)")


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    d_model, layers = config["hidden_size"], config["num_hidden_layers"]
    only(config, hidden_act=("sqrelu",), norm_bias=(True,), value_dim=(d_model, [d_model] * layers), attn=({},))
    only(config, attention_hidden_size=(d_model,))
    d_head = config.get("head_dim") or d_model // config["num_heads"]  # beside a head_dim, num_heads is often wrong
    d_ff = config.get("intermediate_size") or -(-int(d_model * (config.get("hidden_ratio") or 4)) // 32) * 32
    eps = config.get("norm_eps", 1e-5)
    blocks: list[BlockConfig] = []
    for layer in range(layers):
        time = {"d_head": d_head, "ranks": _ranks(config, d_head), "first": layer == 0}
        time["norm_eps"] = config.get("group_norm_epsilon", d_head * eps)
        blocks += [BlockConfig("rwkv7_time", time), BlockConfig("rwkv7_channel", {"d_ff": d_ff})]
    return DecoderConfig(
        vocab=config["vocab_size"],
        d_model=d_model,
        blocks=tuple(blocks),
        norm="layer",
        norm_eps=eps,
        tied_head=config.get("tie_word_embeddings", False),
        embed_norm=config.get("norm_first", True),
    )


def _ranks(config: Mapping[str, Any], d_head: int) -> tuple[int, int, int, int]:
    """Ranks of decay, in-context rate, value mix and gate; the publisher's rule where the config is silent."""

    def rank(name: str, factor: float) -> int:
        return config.get(f"{name}_low_rank_dim") or max(32, round(factor * config["hidden_size"] ** 0.5 / 32) * 32)

    wide = d_head / 64
    return rank("decay", 2.5 * wide), rank("a", 2.5 * wide), rank("v", 1.7 * wide), rank("gate", 5.0)


def inferred(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config of an official `.pth` from its tensors' shapes. Errors: IntegrityError for another kind of file."""
    try:
        vocab, d_model = shapes["emb.weight"]
        layers = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        letters = {"decay": "w", "a": "a", "gate": "g"}
        ranks = {name: shapes[f"blocks.0.att.{letter}1"][1] for name, letter in letters.items()}
        ranks["v"] = shapes["blocks.1.att.v1"][1] if layers > 1 else 32  # layer 0 has none that is used
        return {
            "model_type": "rwkv7",
            "vocab_size": vocab,
            "hidden_size": d_model,
            "num_hidden_layers": layers,
            "head_dim": shapes["blocks.0.att.r_k"][1],
            "intermediate_size": shapes["blocks.0.ffn.key.weight"][0],
            **{f"{name}_low_rank_dim": rank for name, rank in ranks.items()},
            "norm_eps": 1e-5,
            "group_norm_epsilon": 64e-5,  # whatever the head's width
        }
    except (KeyError, ValueError, IndexError) as error:
        raise IntegrityError(
            "The .pth file is no RWKV-7 model:", f"{error!r}.", "Only RWKV-7 is supported (not RWKV-4, 5, 6)."
        ) from error


def plan(config: dict[str, Any]) -> Plan:
    tied, rows = config.get("tie_word_embeddings", False), dict[str, _Rows]()

    def rule(name: str) -> list[Piece] | None:
        if name in OUTSIDE:
            return [] if tied and OUTSIDE[name] == "head.weight" else [Piece(OUTSIDE[name])]
        if (match := NAME.fullmatch(name)) is None:
            return None
        layer, part, leaf = int(match[1]), match[2], match[3]
        if part in NORMS:
            block = NORMS[part]
            owner = "embed_norm" if block is None else f"blocks.{2 * layer + block}.norm"
            return [Piece(f"{owner}.{_norm(leaf)}")] if block is not None or layer == 0 else None
        if part == "ffn":
            target = f"blocks.{2 * layer + 1}.mixer."
            return [Piece(target + "shift.mu", _row)] if leaf == "x_k" else [Piece(target + leaf)]
        if part not in ("att", "attn"):
            return None
        if layer == 0 and leaf in ("v0", "v1", "v2"):  # in official files, and never used
            return []
        target = f"blocks.{2 * layer}.mixer."
        if leaf == "x_x":  # an older spelling of the six
            return [Piece(target + "shift.mu", lambda six: six.reshape(len(MIXES), -1))]
        if re.fullmatch(f"x_[{MIXES}]", leaf):
            return [Piece(target + "shift.mu", rows.setdefault(target, _Rows()).at(leaf[2:], name))]
        ours, take = _time_mix(leaf)
        return [Piece(target + ours, take)]

    return rule


class _Rows:
    """Collects one parameter from the six tensors that hold a row each. The plan is asked for all names before the
    first tensor comes, so a missing row is known then."""

    def __init__(self) -> None:
        self._asked: set[str] = set()
        self._rows: Tensor | None = None

    def at(self, letter: str, name: str) -> Callable[[Tensor], Tensor]:
        self._asked.add(letter)

        def take(row: Tensor) -> Tensor:
            if missing := set(MIXES) - self._asked:
                lacking = ", ".join(name[:-1] + letter for letter in sorted(missing))
                raise IntegrityError(f"The checkpoint lacks tensors: {lacking}.", hint="Download the model again.")
            if self._rows is None:
                wide = torch.promote_types(row.dtype, torch.float32)
                self._rows = torch.zeros(len(MIXES), row.numel(), dtype=wide)
            if row.numel() != self._rows.shape[1]:
                raise IntegrityError(f"{name} has {row.numel()} values, other rows {self._rows.shape[1]}.")
            self._rows[MIXES.index(letter)] = row.flatten()
            return self._rows

        return take


def _time_mix(leaf: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Our name and reading of a time mix's tensor, in either layout."""
    if match := re.fullmatch(r"([wavg])_lora\.lora\.(\d\.\w+)", leaf):
        return f"{match[1]}_lora.{LOW_RANK.get(match[2], match[2])}", _same
    if match := re.fullmatch(r"([wavg])([012])", leaf):  # official: [1, 1, D], and matrices as x @ W
        return f"{match[1]}_lora.{OFFICIAL_LOW_RANK[match[2]]}", _flat if match[2] == "0" else _transposed
    owner, _, last = leaf.rpartition(".")
    if owner in ("ln_x", "g_norm"):
        return f"norm.{_norm(last)}", _same
    if owner in PROJECTIONS:
        return f"{PROJECTIONS[owner]}.{last}", _same
    return leaf, _flat if leaf in ("k_k", "k_a") else _same


def _norm(leaf: str) -> str:
    return {"weight": "gain", "bias": "shift"}.get(leaf, leaf)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t()


def _row(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1)

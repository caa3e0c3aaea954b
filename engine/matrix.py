"""What composes: features x architectures in one table, which `fluvial doctor --matrix` prints and
`tests/composition/test_sessions.py` checks both ways: what is "yes" gives the plain run's tokens, what is "no" raises
`UnsupportedError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# what an architecture has: "state" (recurrent leaves), "memory" (one of them sums up over tokens), "rows" (attention's,
# which grow), "mtp" (its checkpoints may bring a head for multi-token prediction)
ARCHITECTURES: Mapping[str, frozenset[str]] = {
    "mamba": frozenset({"state", "memory"}),
    "mamba2": frozenset({"state", "memory"}),
    "rwkv7": frozenset({"state", "memory"}),
    "gated_delta": frozenset({"state", "memory"}),
    "short_conv hybrid": frozenset({"state", "rows"}),
    "qwen3_5 hybrid": frozenset({"state", "memory", "rows", "mtp"}),
    "transformer": frozenset({"rows"}),
}


class Feature(NamedTuple):
    """One value of one axis. `needs`: what an architecture must have, or nothing; `why`: the reason it must. `brings`:
    what a model of such an architecture must bring besides, or nothing."""

    axis: str
    value: str
    needs: str = ""
    why: str = ""
    brings: str = ""


_START = "a state plugin says what a recurrent state begins with, and it has none"
_KEPT = "it has no memory that sums up over tokens, which is what would be rounded"
_ROWS = "its memory is constant already: there are no rows that grow"
_MTP = "only Qwen3.5 and Qwen3-Next checkpoints bring such a head"
_TOWER = "a vision tower"
FEATURES: tuple[Feature, ...] = (
    *(Feature("format", format) for format in ("bf16", "int8", "int4")),
    Feature("plugin", "none"),
    Feature("plugin", "lora"),
    Feature("plugin", "state", "state", _START),
    *(Feature("cache", tier) for tier in ("cold", "ram", "disk")),
    *(Feature("draft", draft) for draft in ("none", "ngram", "model")),
    Feature("draft", "mtp", "mtp", _MTP, "mtp.* tensors"),
    Feature("draft", "head", "", "", "a trained head, which drafts trees"),
    Feature("input", "text"),
    Feature("input", "image", "", "", _TOWER),
    Feature("input", "video", "", "", _TOWER),
    *(Feature("way", way) for way in ("interrupted", "forked", "saved")),
    Feature("kv", "exact"),
    Feature("kv", "int8", "rows", _ROWS),
    Feature("kv", "window", "rows", _ROWS),
    Feature("state_dtype", "fp32"),
    Feature("state_dtype", "bf16", "memory", _KEPT),
    Feature("state_dtype", "int8", "memory", _KEPT),
)


def refusal(architecture: str, cell: Mapping[str, str]) -> str:
    """Why a cell (value by axis) cannot be; empty where it can."""
    has = ARCHITECTURES[architecture]
    missing = (f for f in FEATURES if cell.get(f.axis) == f.value and f.needs and f.needs not in has)
    return "; ".join(feature.why for feature in missing)


def table() -> list[dict[str, object]]:
    """A row for each feature: axis, value, what the model must bring, and by architecture why not (empty: it works)."""
    return [
        {
            "axis": feature.axis,
            "value": feature.value,
            "brings": feature.brings,
            "refused": {name: refusal(name, {feature.axis: feature.value}) for name in ARCHITECTURES},
        }
        for feature in FEATURES
    ]

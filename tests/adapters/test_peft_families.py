"""A PEFT plugin on every published family equals the same checkpoint with the plugin merged into its weights.

The plugin changes every matrix that the family publishes and that is a projection here, by the published names; the
merged checkpoint is made from names and shapes alone. Split, fused, permuted and transposed matrices show here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fluvial.adapters import peft
from fluvial.adapters.linear import Embedding, Linear
from fluvial.engine.loading import Parts, load_parts
from fluvial.engine.plugins import modules_of
from tests.adapters.peft_files import checkpoint, pair, published, table, write
from tests.parity import (
    lfm2_published,
    test_hybrids,
    test_idefics3,
    test_mamba,
    test_qwen3_5,
    test_qwen3_vl,
    test_rwkv,
    test_transformers,
)
from tests.parity.reference import error, perturbed, tokens

transformers = pytest.importorskip("transformers")


def _saved(make: Callable[[], Any]) -> Callable[[Path], object]:
    return lambda folder: make().save_pretrained(folder)


def _qwen(name: str) -> nn.Module:
    kind, options = test_qwen3_5.TEXTS[name]
    torch.manual_seed(7)
    suffix = "" if kind == "Qwen3Next" else "Text"
    config = getattr(transformers, f"{kind}{suffix}Config")(**{**test_qwen3_5.TEXT, **options, "num_hidden_layers": 4})
    return perturbed(getattr(transformers, f"{kind}ForCausalLM")(config))


FAMILIES: dict[str, Callable[[Path], object]] = {
    **{name: partial(test_hybrids.published, name) for name in test_hybrids.FAMILIES},
    **{
        name: _saved(partial(test_transformers.reference, name))
        for name in ("llama", "llama-biases", "llama-tied-wide", "qwen2", "qwen3", "smollm3")
    },
    **{name: _saved(make) for name, make in test_mamba.FAMILIES.items()},
    **{name: _saved(partial(_qwen, name)) for name in ("qwen3_5_text", "qwen3_5-biases", "qwen3_next")},
    "qwen3_5": test_qwen3_5.Seen,
    "qwen3_vl": test_qwen3_vl.made,
    "idefics3": lambda folder: test_idefics3.Seen("idefics3", folder),
    "smolvlm": lambda folder: test_idefics3.Seen("smolvlm", folder),
    "lfm2_vl": lfm2_published.make,
    "rwkv7": test_rwkv.fla_layout,
}


def doors(parts: Parts, names: list[str]) -> dict[str, list[Linear]]:
    """The published names of matrices, with the doors that hold them."""
    found: dict[str, list[Linear]] = {}
    for module, plan in modules_of(parts.config, parts.decoder, parts.tower).values():
        for name in names:
            for piece in plan(name) or ():
                owner, _, leaf = piece.name.rpartition(".")
                door = module.get_submodule(owner) if leaf == "weight" else None
                if isinstance(door, Linear):
                    found.setdefault(name, []).append(door)
    return found


@torch.no_grad()
def says(parts: Parts, ids: Tensor, key: str | None = None) -> Tensor:
    """Logits [1, T, vocab], and of a picture where there is a tower."""
    route, decoder = ({key: 1.0} if key else None), parts.decoder
    hidden, state = decoder(decoder.embed(ids, route), route=route)
    logits: list[Tensor] = [decoder.logits(hidden, route)]
    if parts.tower is not None:
        for step in parts.tower.encode([test_qwen3_5.picture(70, 110, 3)], route, video=False):
            hidden, state = decoder(step[None], state, route=route)
            logits.append(decoder.logits(hidden, route))
    return torch.cat(logits, 1)


def bytes_of(parts: Parts) -> list[Tensor]:
    modules = [module for module in (parts.decoder, parts.tower) if module is not None]
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_of_a_family(name: str, tmp_path: Path) -> None:
    FAMILIES[name](tmp_path / "base")
    parts, weights = load_parts(tmp_path / "base"), published(tmp_path / "base")
    before, found = bytes_of(parts), doors(load_parts(tmp_path / "base"), list(weights))
    tensors: dict[str, Tensor] = {}
    for i, (weight, held) in enumerate(found.items()):
        module, value = weight.removesuffix(".weight"), weights[weight]
        lookup = isinstance(held[0], Embedding)
        if value.ndim != 2 or (lookup and parts.decoder.head is None):  # a patch's convolution; a tied table
            continue
        d_out, d_in = value.shape
        # With some draws a model magnifies fp32's own rounding: merged or not, its logits are off by up to 5e-5.
        made = (table if lookup else pair)(module, d_out, d_in, seed=i + 700)
        tensors |= made
        A, B = made.values()
        # alpha 6, rank 3
        weights[weight] = value.double() + 2.0 * (A.double().T @ B.double().T if lookup else B.double() @ A.double())
    write(tmp_path / "plugin", tensors)
    checkpoint(tmp_path / "base", tmp_path / "merged", weights)
    plugin = peft.read(tmp_path / "plugin", modules_of(parts.config, parts.decoder, parts.tower), torch.float32)
    changed = {change.door for change in plugin.changes}
    modules = [module for root in (parts.decoder, parts.tower) if root is not None for module in root.modules()]
    every = {m for m in modules if isinstance(m, Linear) and not isinstance(m, Embedding)}
    assert len(every - changed) <= (parts.tower is not None)  # no projection is forgotten but the patches' convolution
    plugin.attach("p")
    ids = tokens(int(json.loads((tmp_path / "base" / "config.json").read_text()).get("vocab_size", 96)))
    ours, plain = says(parts, ids, "p"), says(parts, ids)
    wide, merged = (load_parts(tmp_path / folder, torch.float64) for folder in ("base", "merged"))
    peft.read(tmp_path / "plugin", modules_of(wide.config, wide.decoder, wide.tower), torch.float64).attach("p")
    exact, truth = says(wide, ids, "p"), says(merged, ids)
    rounding = error(says(load_parts(tmp_path / "merged"), ids), truth.float())
    off, closeness = error(ours, truth.float()), error(exact, truth)
    print(
        f"plugin  {name:24} {len(tensors) // 2:3} matrices, off by {off:.1e} in fp32 (merged {rounding:.1e}) and"
        f" {closeness:.1e} in fp64, moves {error(plain, truth.float()):.1e}"
    )
    assert closeness <= 1e-9 and off <= 1e-5 + rounding
    assert error(plain, truth.float()) > 1e-2
    plugin.detach("p")
    assert all(torch.equal(a, b) for a, b in zip(before, bytes_of(parts), strict=True))
    assert torch.equal(says(parts, ids, "p"), plain)

"""The RWKV-7 that its author trained to write numbers backwards, with its published weights:

    python -m examples.reverse_digits 260123_reverse_L2_only_rwkv7.pth [--digits 60] [--each 10] [--quant int8]

The file (190 KB) is in BlinkDL/RWKV-LM under RWKV-v8; the script beside it reports 396,500 of 396,500 digits right for
1 to 60 digits. It is two layers of width 32 without a norm behind the embedding and with two biases that a usual
checkpoint lacks, so the decoder is put together by hand here: any list of blocks is a model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fluvial.adapters.linear import Linear
from fluvial.adapters.packed import formats_of
from fluvial.adapters.recipes import matrices, recipe
from fluvial.models.checkpoints.rwkv7 import MIXES
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig

WIDTH, COMMA = 32, 10  # ids are the digits, a comma and an end


def published(path: Path) -> Decoder:
    """The decoder with the weights of the file."""
    given: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    blocks: list[BlockConfig] = []
    for layer in range(2):
        time_mix = {"d_head": 16, "ranks": (8, 8, 8, 8), "first": layer == 0, "norm_eps": 64e-5}
        blocks += [BlockConfig("rwkv7_time", time_mix), BlockConfig("rwkv7_channel", {"d_ff": 4 * WIDTH})]
    config = DecoderConfig(vocab=12, d_model=WIDTH, blocks=tuple(blocks), norm="layer", norm_eps=1e-5, tied_head=False)
    decoder = Decoder(config)
    ours = {"embedding.weight": given["e.weight"], "head.weight": given["o.weight"], "head.bias": given["o.bias"]}
    decoder.head = Linear(WIDTH, 12, bias=True)
    ours |= {"norm.gain": given["lno.weight"], "norm.shift": given["lno.bias"]}
    for layer in (1, 2):
        att, ffn = f"rwkv{layer}.", f"ffn{layer}."
        time_to, channel_to = f"blocks.{2 * layer - 2}.", f"blocks.{2 * layer - 1}."
        for to, letter in ((time_to, "a"), (channel_to, "b")):
            ours[f"{to}norm.gain"] = given[f"ln{layer}{letter}.weight"]
            ours[f"{to}norm.shift"] = given[f"ln{layer}{letter}.bias"]
        mix = f"{time_to}mixer."
        for name, letter in (("receptance", "r"), ("key", "k"), ("value", "v"), ("output", "o")):
            ours[f"{mix}{letter}_proj.weight"] = given[f"{att}{name}.weight"]
        decoder.get_submodule(f"{mix[:-1]}").o_proj = Linear(WIDTH, WIDTH, bias=True)
        ours[f"{mix}o_proj.bias"] = given[f"rosa{layer}.o.bias"]  # all that is left of a branch that was switched off
        ours[f"{mix}shift.mu"] = torch.cat([given[f"{att}x_{letter}"][0] for letter in MIXES])
        for letter in "wag" if layer == 1 else "wavg":
            ours[f"{mix}{letter}_lora.A.weight"] = given[f"{att}{letter}1"].T
            ours[f"{mix}{letter}_lora.B.weight"] = given[f"{att}{letter}2"].T
            if letter != "g":
                ours[f"{mix}{letter}_lora.base"] = given[f"{att}{letter}0"].flatten()
        ours |= {f"{mix}{name}": given[f"{att}{name}"].flatten() for name in ("k_k", "k_a")}
        ours[f"{mix}r_k"] = given[f"{att}r_k"]
        ours |= {f"{mix}norm.gain": given[f"{att}ln_x.weight"], f"{mix}norm.shift": given[f"{att}ln_x.bias"]}
        ours[f"{channel_to}mixer.shift.mu"] = given[f"{ffn}x_k"][0]
        ours |= {f"{channel_to}mixer.{name}.weight": given[f"{ffn}{name}.weight"] for name in ("key", "value")}
    decoder.load_state_dict(ours)
    return decoder.eval()


@torch.inference_mode()
def reversed_by(decoder: Decoder, numbers: Tensor) -> Tensor:
    """numbers int64 [B, N], digits -> the model's own N digits after "number,", token by token."""
    comma = torch.full((len(numbers), 1), COMMA)
    hidden, state = decoder(decoder.embed(torch.cat([numbers, comma], 1)), None)
    said: list[Tensor] = []
    for _ in range(numbers.shape[1]):
        said.append(decoder.logits(hidden[:, -1:]).argmax(-1))
        hidden, state = decoder(decoder.embed(said[-1]), state)
    return torch.cat(said, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--digits", type=int, default=60)
    parser.add_argument("--each", type=int, default=10, help="numbers of each length")
    parser.add_argument("--quant", help="a recipe: int8, int4")
    args = parser.parse_args()
    decoder, draw = published(args.weights), np.random.default_rng(42)
    if args.quant:
        layers = matrices({"decoder": decoder})
        for name, format in formats_of(recipe(args.quant), {"decoder": decoder}).items():
            layers[name].store(format)
    right = whole = 0
    begin = time.perf_counter()
    for digits in range(1, args.digits + 1):
        numbers = torch.from_numpy(draw.integers(0, 10, (args.each, digits)))
        said = reversed_by(decoder, numbers)
        right += int((said == numbers.flip(1)).sum())
        whole += numbers.numel()
    print(f"{right:,} of {whole:,} digits right, 1 to {args.digits} digits; {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()

"""Kernels against their torch references: median CPU time of one call on one thread, and the ratio.

"warm": the same state again and again. "cold": 18 layers in turn, each result the next call's state, as a decoder runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fluvial.adapters import chips, native, ops
from fluvial.models.gated_delta import gated_delta

LAYERS, SAMPLES, SECONDS = 18, 15, 0.02
SIZES = {"pebble": (3, 64, 64), "large": (16, 128, 128)}  # H, K, V


def inputs(T: int, H: int, K: int, V: int) -> list[Tensor]:
    q, k = (F.normalize(torch.randn(1, T, H, K), dim=-1) for _ in range(2))
    g, beta = -torch.rand(1, T, H), torch.rand(1, T, H)
    return [q * K**-0.5, k, torch.randn(1, T, H, V), g, beta, torch.randn(1, H, K, V)]


def median_us(call: Callable[[], object]) -> float:
    """CPU microseconds of one call: the median over samples of about 20 ms each."""
    call()
    start = time.thread_time()
    call()
    repeats = max(1, int(SECONDS / max(time.thread_time() - start, 1e-6)))
    samples = []
    for _ in range(SAMPLES):
        start = time.thread_time()
        for _ in range(repeats):
            call()
        samples.append((time.thread_time() - start) / repeats)
    return statistics.median(samples) * 1e6


def warm(run: Callable[..., tuple[Tensor, ...]], args: list[Tensor]) -> float:
    return median_us(lambda: run(*args))


def cold(run: Callable[..., tuple[Tensor, ...]], args: list[Tensor]) -> float:
    states = [args[-1].clone() for _ in range(LAYERS)]

    def token() -> None:
        for layer in range(LAYERS):
            states[layer] = run(*args[:-1], states[layer])[-1]

    return median_us(token) / LAYERS


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    chips.load()
    print(native.status().detail)
    library = native.library()
    for kernel in gated_delta.kernels if library else []:
        print(f"\n{kernel.op}: CPU us a call, torch reference / kernel = ratio")
        sets = library.sets if library else ()
        print(f"{'':24}" + "".join(f"{one:>28}" for one in sets))
        for name, size in SIZES.items():
            for tokens in (1, 4, 16):
                args = inputs(tokens, *size)
                for kind in (warm, cold):
                    reference = kind(gated_delta.reference, args)
                    cells = []
                    for one in sets:
                        ours = kind(lambda *a, one=one, run=kernel.run: run(*a, instructions=one), args)
                        cells.append(f"{reference:9.1f} /{ours:8.1f} = {reference / ours:4.1f}x")
                    print(f"{name:8} T={tokens:<4} {kind.__name__:8}" + "".join(f"{cell:>28}" for cell in cells))
        tiny = inputs(1, 1, 8, 8)
        print(f"a tiny call (all dispatch): {median_us(lambda tiny=tiny: gated_delta(*tiny)):.1f} us")
    print("\n" + "\n".join(f"{name}: {choice}" for name, choice in ops.explain().items()))


if __name__ == "__main__":
    main()

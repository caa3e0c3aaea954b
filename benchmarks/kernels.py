"""Kernels against their torch references: median CPU time of one call on one thread, and the ratio.

Mixers at published sizes run "cold": their layers in turn, each result the next call's state, as a decoder runs them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters import chips, native, ops
from fluvial.models import decoder  # noqa: F401  (it defines the ops)

SAMPLES, SECONDS = 15, 0.02
TOKENS = (1, 4, 16)


def gated_delta_mix(T: int, H: int, K: int, V: int) -> tuple[list[Any], int]:
    """The op's arguments and where its state stands among them."""
    rows, z, S = torch.randn(1, T, 2 * H * K + H * V), torch.randn(1, T, H * V), torch.zeros(1, H, K, V)
    a, b, A_log, dt_bias = torch.randn(1, T, H), torch.randn(1, T, H), torch.randn(H), torch.randn(H)
    return [rows, a, b, z, A_log, dt_bias, torch.ones(V), S, None, H, False, 1.0, 1e-6, 1e-6], 7


def rwkv7_mix(T: int, H: int, K: int) -> tuple[list[Any], int]:
    rows, weights = [torch.randn(1, T, H * K) for _ in range(8)], [torch.randn(H * K) for _ in range(4)]
    return [*rows, *weights[:2], torch.randn(H, K), *weights[2:], torch.zeros(1, H, K, K), None, 64e-5], 13


def mamba2_mix(T: int, H: int, P: int, N: int) -> tuple[list[Any], int]:
    rows = torch.randn(1, T, H * P + 2 * N), torch.randn(1, T, H), torch.randn(1, T, H * P)
    heads = [torch.randn(H) for _ in range(3)]
    limit = (0.0, float("inf"))
    return [*rows, *heads, torch.ones(H * P), torch.zeros(1, H, P, N), None, 1, False, 1e-5, limit], 7


def mamba_mix(T: int, E: int, N: int) -> tuple[list[Any], int]:
    rows = [torch.randn(1, T, E) for _ in range(3)] + [torch.randn(1, T, N) for _ in range(2)]
    return [*rows, torch.randn(E, N), torch.randn(E), torch.randn(E), torch.zeros(1, E, N), None], 8


MIXERS: dict[
    str, tuple[str, int, Callable[[int], tuple[list[Any], int]]]
] = {  # model: op, layers, arguments of T tokens
    "pebble": ("gated_delta_mix", 6, lambda T: gated_delta_mix(T, 3, 64, 64)),
    "Qwen3.5 0.8B": ("gated_delta_mix", 18, lambda T: gated_delta_mix(T, 16, 128, 128)),
    "RWKV-7 0.4B": ("rwkv7_mix", 24, lambda T: rwkv7_mix(T, 16, 64)),
    "Mamba-2 780M": ("mamba2_mix", 48, lambda T: mamba2_mix(T, 48, 64, 128)),
    "Mamba 370M": ("mamba_mix", 48, lambda T: mamba_mix(T, 2048, 16)),
}
OTHERS: dict[str, tuple[str, Callable[[int], list[Any]]]] = {
    "conv 6144 x 4": (
        "short_conv",
        lambda T: [torch.randn(1, T, 6144), torch.randn(1, 3, 6144), torch.randn(6144, 4), None, True],
    ),
    "shift 6 x 1024": (
        "token_shift",
        lambda T: [torch.randn(1, T, 1024), torch.randn(1, 1, 1024), torch.randn(6, 1024)],
    ),
    "norm 1024": ("rms_norm", lambda T: [torch.randn(1, T, 1024), torch.randn(1024), 0.0, 1e-6]),
    "norm 1024 centred": ("layer_norm", lambda T: [torch.randn(1, T, 1024), *torch.randn(2, 1024), 1e-5]),
    "SwiGLU 3584": ("gated_silu", lambda T: [*torch.randn(2, 1, T, 3584), 1.0]),
    "queries 16 x 128": (
        "head_rows",
        lambda T: [torch.randn(1, T, 16, 128), torch.randn(128), *torch.randn(2, 1, T, 1, 64), 0.0, 1e-6],
    ),
    "attention 16/8 x 128, 1000 rows": (
        "attend",
        lambda T: [
            *(torch.randn(1, T, heads, 128) for heads in (16, 8, 8)),
            *torch.randn(2, 1, 8, 1000 + T, 128),
            (1000,),
            None,
        ],
    ),
}


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


def cold(run: Callable[..., tuple[Tensor, ...]], args: list[Any], state: int, layers: int) -> float:
    """CPU microseconds of one layer's call, each layer with a state of its own."""
    states = [args[state].clone() for _ in range(layers)]

    def token() -> None:
        for layer in range(layers):
            states[layer] = run(*args[:state], states[layer], *args[state + 1 :])[-1]

    return median_us(token) / layers


def line(name: str, tokens: int, op: str, time_us: Callable[[Callable[..., Any]], float]) -> None:
    """Prints a row: the reference against every compiled copy of the kernel."""
    found, library = ops.registered()[op], native.library()
    reference, cells = time_us(found.reference), []
    for one in library.sets if library else ():
        ours = time_us(lambda *args, one=one, run=found.kernels[-1].run: run(*args, instructions=one))
        cells.append(f"{reference:9.1f} /{ours:8.1f} = {reference / ours:5.1f}x")
    print(f"{name:32} T={tokens:<4}" + "".join(f"{cell:>29}" for cell in cells), flush=True)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chips.load()
    print(native.status().detail)
    library = native.library()
    print("CPU us a call, torch reference / kernel = ratio")
    print(f"{'':38}" + "".join(f"{one:>29}" for one in (library.sets if library else ())))
    for name, (op, layers, make) in MIXERS.items():
        for tokens in TOKENS:
            args, state = make(tokens)
            line(name, tokens, op, lambda run, a=args, s=state, n=layers: cold(run, a, s, n))
    for name, (op, given) in OTHERS.items():
        for tokens in TOKENS:
            args = given(tokens)
            line(name, tokens, op, lambda run, a=args: median_us(lambda: run(*a)))
    print("\n" + "\n".join(f"{name}: {choice}" for name, choice in ops.explain().items()))


if __name__ == "__main__":
    main()

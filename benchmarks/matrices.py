"""Products with stored matrices: share of the read bandwidth at one row, and ratios against the torch reference and
torch's own low-bit products. Medians of CPU time on one thread, each matrix too large for the caches or one of many.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters import chips, native, ops, pages
from fluvial.adapters.formats import by_name

SIZES = {"pebble": (192, 512), "up 0.6B": (3072, 1024), "up 4B": (9728, 2560), "head 0.6B": (151936, 1024)}
COLD = 96 << 20  # bytes of copies that one pass reads


def seconds(call: Callable[[], object], samples: int = 7) -> float:
    """Median CPU seconds of this thread."""
    call()
    times = []
    for _ in range(samples):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def bandwidth() -> float:
    """Bytes a second that a sum over 256 MB in huge pages reads, where the weights lie too."""
    data = torch.ones(64 << 20)
    pages.gather([data])
    return data.nbytes / seconds(data.sum)


def parts_of(kind: str, out: int, columns: int) -> tuple[str, tuple[Any, ...]]:
    """The op and its weights, filled with random codes in place."""
    if kind in ("bf16", "fp32"):
        weight = torch.empty(out, columns, dtype=torch.bfloat16 if kind == "bf16" else torch.float32).uniform_(
            -0.1, 0.1
        )
        return "dense_linear", (weight,)
    parts = by_name(f"{kind}-g32").empty(out, columns, None, None)
    parts["q"].random_(0, 120)
    parts["scale"].uniform_(0.001, 0.002)
    return f"{kind}_linear", (parts["q"], parts["scale"], *([None] if kind == "int4" else []))


def torch_own(kind: str, x: Tensor, out: int, columns: int) -> Callable[[], Tensor] | None:
    """torch's product of the same bytes in bf16; None where it has none."""
    half = x.bfloat16()
    if kind == "int8":
        codes, scale = torch.ones(out, columns, dtype=torch.int8), torch.ones(out, dtype=torch.bfloat16)
        return lambda: torch._weight_int8pack_mm(half, codes, scale)
    if kind == "int4":
        whole = torch.ones(out, columns, dtype=torch.int32)
        packed = torch._convert_weight_to_int4pack_for_cpu(whole, 1)
        scales = torch.ones(columns // 32, out, 2, dtype=torch.bfloat16)
        return lambda: torch._weight_int4pack_mm_for_cpu(half, packed, 32, scales)
    if kind == "bf16":
        weight = torch.ones(out, columns, dtype=torch.bfloat16)
        return lambda: torch.nn.functional.linear(half, weight)
    return None


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    chips.load()
    print(f"{native.status().detail}; 1 thread, CPU time; x is fp32 [M, in], torch's own takes bf16")
    print(f"{'matrix':30}{'GB/s':>7}{'of read':>9}{'/ reference':>13}{'/ torch own':>13}   M=4, 16: us; M=256: GFLOP/s")
    for name, (out, columns) in SIZES.items():
        for kind in ("int4", "int8", "bf16", "fp32"):
            if kind == "fp32" and out * columns > COLD:
                continue
            op, weights = parts_of(kind, out, columns)
            size = sum(w.nbytes for w in weights if w is not None)
            copies = [tuple(w if w is None else w.clone() for w in weights) for _ in range(COLD // size)] or [weights]
            pages.gather(w for one in copies for w in one if w is not None)
            x, call, found = torch.randn(1, columns), ops.registered()[op], len(copies)

            def every(run: Callable[..., Any], x: Tensor = x, copies: list[Any] = copies) -> None:
                for one in copies:
                    run(x, *one)

            read = bandwidth()
            ours = seconds(lambda call=call, every=every: every(call)) / found
            few = copies[: max(1, found // 20)]
            slow = seconds(lambda call=call, every=every, few=few: every(call.reference, copies=few), 3) / len(few)
            own = torch_own(kind, x, out, columns) if found <= 64 else None
            theirs = f"{seconds(own) / ours:12.1f}x" if own else f"{'-':>13}"
            more = []
            if out < 100_000:
                for rows in (4, 16, 256):
                    wide = torch.randn(rows, columns)
                    took = seconds(lambda w=wide, call=call, weights=weights: call(w, *weights), 3)
                    more.append(f"{took * 1e6:.0f}" if rows < 256 else f"{2 * rows * out * columns / took / 1e9:.0f}")
            rate = size / ours
            row = f"{name} {kind} {out}x{columns}"
            print(
                f"{row:30}{rate / 1e9:7.1f}{rate / read:9.0%}{slow / ours:12.1f}x{theirs}   {' '.join(more)}",
                flush=True,
            )
            del copies, weights, own


if __name__ == "__main__":
    main()

"""`Costs`: what a forward over T tokens costs on this model and machine, measured as it runs."""

from __future__ import annotations

import time
from itertools import pairwise

import torch

from fluvial.models.decoder import Decoder

MOST = 15  # guesses at once: with the token before them, a batch that the kernels take whole
DEPTHS = (1, 3, 7, MOST)  # few shapes: each is recorded once (models/replay.py)
SLOPE = 0.3  # of a plain forward, for each further token, where nothing is measured
SURE = 3  # measurements of a length: the least of them counts, and from then on a running mean
ROUNDS = 2  # of measuring before the first answer


class Costs:
    """Seconds of a forward over T tokens, kept as multiples of a plain one: the machine may be faster or slower as a
    whole than when they were measured. Between measured lengths, half of what a line says comes on top of the lower
    one, because costs have steps and what looks good is measured next; behind them a line goes on."""

    def __init__(self) -> None:
        self._plain = 0.0
        self._seen: dict[int, tuple[float, int]] = {1: (1.0, 1)}  # tokens -> multiple, measurements
        self._line: list[float] = []

    def __bool__(self) -> bool:
        return self._plain > 0

    def __call__(self, tokens: int) -> float:
        """For 1 ... MOST + 1 tokens; needs a plain forward measured."""
        return self._plain * self._line[tokens]

    def note(self, tokens: int, seconds: float) -> None:
        """One forward over so many tokens; nothing is known before the first plain one. What is far off counts for
        less: the machine has other work too."""
        if tokens == 1:
            self._plain += 0.1 * (min(seconds, 2 * self._plain) - self._plain) if self._plain else seconds
            if self._line:
                return
        elif self._plain:
            times = seconds / self._plain
            known, count = self._seen.get(tokens, (times, 0))
            step = min(times, 2 * known) - known
            self._seen[tokens] = known + (min(0.0, step) if count < SURE else 0.1 * step), count + 1
        measured = sorted((tokens, times) for tokens, (times, _) in self._seen.items())
        line = [0.0]
        for (low, begin), (high, end) in pairwise(measured):
            line += [begin, *(begin + (end - begin) * i / (high - low) / 2 for i in range(1, high - low))]
        last, end = measured[-1]
        slope = max(0.0, (end - 1) / (last - 1)) if last > 1 else SLOPE
        self._line = line + [end + slope * i for i in range(MOST + 2 - last)]


@torch.no_grad()
def measured(decoder: Decoder) -> Costs:
    """The costs of plain forwards and of the shorter checks, which are recorded before they are timed: answers then
    pay for neither. Takes as long as some thirty plain forwards."""
    state, best = decoder.init_state(), dict[int, float]()
    lengths = (1, *(depth + 1 for depth in DEPTHS[:-1]))
    for tokens in lengths:
        decoder.expect(1, tokens, journal=tokens > 1)
    for rounds in range(1 + ROUNDS):
        for tokens in lengths:
            began = time.perf_counter()
            x = decoder.embed(torch.zeros(1, tokens, dtype=torch.long, device=decoder.device))
            if tokens > 1:
                hidden, journal = decoder(x, state, journal=True)
                journal.commit(tokens - 1)
            else:
                hidden, _ = decoder(x, state)
            decoder.logits(hidden[0])
            if rounds:
                best[tokens] = min(best.get(tokens, torch.inf), time.perf_counter() - began)
    costs = Costs()
    for tokens, seconds in best.items():
        costs.note(tokens, seconds)
    return costs

"""From logits to a token, in fp32 and in this order: repetition penalty, temperature, top-k, top-p, min-p.

The order and each rule are those of Transformers' logits processors: the penalty divides positive and multiplies
negative logits of every token seen (Keskar et al. 2019); top-k keeps ties with the k-th; top-p keeps the smallest set
of likeliest tokens with at least that mass (Holtzman et al. 2019); min-p keeps tokens with at least that share of the
likeliest one's probability (Nguyen et al. 2024). V is the vocabulary, B rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fluvial.adapters.choice import largest
from fluvial.adapters.errors import FluvialError, IntegrityError, UsageError

TIES, FIRST, MOST = 12, 64, 4096  # likely tokens: beside the k-th, to begin with, before all are sorted


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. Errors: UsageError for a value out of range.

    `temperature` 0 is greedy: the likeliest token after the penalty, the other settings being idle. `top_k` 0, `top_p`
    1, `min_p` 0 and `repetition_penalty` 1 are off. The penalty looks at the last `repetition_window` tokens, which is
    all the history that a caller has to keep. `seed` None takes one from the system."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0)
        _check("top_k", self.top_k, 0, whole=True)
        _check("top_p", self.top_p, 0, 1, above=True)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, above=True)
        _check("repetition_window", self.repetition_window, 0, whole=True)
        if self.seed is not None:
            _check("seed", self.seed, 0, 2**63 - 1, whole=True)

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


class Sampler:
    """Chooses tokens by `params`, with a random generator of its own (on the CPU: the same draws on every chip)."""

    def __init__(self, params: SamplingParams | None = None, *, vocab_size: int | None = None) -> None:
        """`vocab_size`: the tokenizer's, where the model's is padded: ids from there on are never chosen."""
        self.params = params or SamplingParams()
        self._vocab_size = vocab_size
        self._random = torch.Generator()
        if self.params.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(self.params.seed)

    def probs(self, logits: Tensor, history: Sequence[int] | Sequence[Sequence[int]] = ()) -> Tensor:
        """The exact distribution that `sample` draws from: fp32 probs [V] or [B, V] for logits [V] or [B, V], on their
        device; one-hot when greedy.

        `history`: the token ids so far, oldest first; for [B, V] one sequence for each row (or none at all). Errors:
        FluvialError for NaN, +inf or only -inf in a row, UsageError for a shape or a token id that does not fit."""
        rows, best = self._checked(logits, history)
        if self.params.greedy:
            probs = torch.zeros_like(rows).scatter_(-1, best, 1.0)
        else:
            probs = torch.zeros_like(rows)
            for row, to in zip(self._scaled(rows, best), probs, strict=True):
                ids, weights = self._left(row)
                to[ids] = weights
        return probs.reshape(logits.shape)

    def sample(self, logits: Tensor, history: Sequence[int] = ()) -> int:
        """A token for logits [V]; one draw from the generator unless greedy. Errors: as `probs`."""
        if logits.dim() != 1:
            raise UsageError(f"Logits have the shape {list(logits.shape)}.", "A token is sampled from [V].")
        rows, best = self._checked(logits, history)
        if self.params.greedy:
            return int(best)
        ids, weights = self._left(self._scaled(rows, best)[0])
        return int(ids[self.draw(weights)])

    def verify(self, guess: int, weights: Tensor, logits: Tensor, history: Sequence[int] = ()) -> int:
        """A token for logits [V] as `sample` would distribute it, likely the `guess`, which was drawn from weights [V
        or less] q: it is kept with the chance p / q, else max(0, p - q) is drawn from (Leviathan et al. 2023)."""
        p = self.probs(logits, history)
        q = torch.zeros_like(p)
        q[: len(weights)] = weights
        if self.happens(float(p[guess]) / float(q[guess])):
            return guess
        rest = (p - q).clamp(min=0)
        return self.draw(rest if bool(rest.any()) else p)

    def draw(self, probs: Tensor) -> int:
        """A token for non-negative weights [V] that need not sum to 1 (speculation's residuals); never one of weight 0.

        No draw is spent when greedy. Errors: FluvialError if the weights have no finite positive sum."""
        total = torch.cumsum(probs.detach().to("cpu", torch.float64), 0)  # [V]
        mass = float(total[-1])
        if not (math.isfinite(mass) and mass > 0):
            raise FluvialError("The probabilities have no mass.", f"They sum to {mass}.")
        if self.params.greedy:
            return int(probs.argmax())
        last = int(torch.searchsorted(total, total[-1:]))  # the first to reach the whole mass: rounding stops there
        return min(
            int(torch.searchsorted(total, torch.tensor([self.uniform() * mass], dtype=torch.float64), right=True)), last
        )

    def uniform(self) -> float:
        """One fp64 number in [0, 1) from the generator."""
        return float(torch.rand((), generator=self._random, dtype=torch.float64))

    def happens(self, chance: float) -> bool:
        """Whether something with that chance comes about; one draw."""
        return self.uniform() < chance

    def state(self) -> Tensor:
        """The generator's state, uint8 [n]: a saved session goes on with the same draws."""
        return self._random.get_state()

    def load_state(self, state: Tensor) -> None:
        """Put a saved state back. Errors: IntegrityError if it is none."""
        try:
            self._random.set_state(state.cpu())
        except (RuntimeError, TypeError) as error:
            raise IntegrityError("The saved sampler state does not fit.", f"{error}"[:200]) from error

    def _checked(self, logits: Tensor, history: Sequence[int] | Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Penalized fp32 rows [B, V] and the likeliest token [B, 1] of each."""
        if logits.dim() not in (1, 2) or logits.shape[-1] == 0:
            raise UsageError(f"Logits have the shape {list(logits.shape)}.", "They are [V] or [B, V].")
        rows = logits.detach().float().reshape(-1, logits.shape[-1])
        rows = self._penalized(rows, self._histories(history, logits))
        if self._vocab_size is not None and self._vocab_size < rows.shape[-1]:
            rows = rows.index_fill(-1, torch.arange(self._vocab_size, rows.shape[-1], device=rows.device), -math.inf)
        top, best = largest(rows, 1)
        if not bool(torch.isfinite(top).all()):
            kind = "NaN" if bool(top.isnan().any()) else "+inf" if bool((top > 0).any()) else "only -inf"
            raise FluvialError(f"The model gave logits with {kind}.", "No token can be chosen.", "Check its weights.")
        return rows, best

    def _histories(self, history: Sequence[int] | Sequence[Sequence[int]], logits: Tensor) -> list[list[int]]:
        if self.params.repetition_penalty == 1 or self.params.repetition_window == 0 or not len(history):
            return []
        rows = [history] if logits.dim() == 1 else history
        if logits.dim() == 2 and (len(rows) != len(logits) or any(isinstance(row, int) for row in rows)):
            raise UsageError(f"{len(logits)} rows of logits need one history each.")
        seen = [sorted({int(id) for id in row[-self.params.repetition_window :]}) for row in rows]  # type: ignore
        if any(row and not 0 <= row[0] <= row[-1] < logits.shape[-1] for row in seen):
            raise UsageError(
                "The history holds a token id outside the vocabulary.", f"It has {logits.shape[-1]} tokens."
            )
        return seen

    def _penalized(self, rows: Tensor, histories: list[list[int]]) -> Tensor:
        penalty = self.params.repetition_penalty
        if histories:
            rows = rows.clone()
        for row, seen in zip(rows, histories, strict=bool(histories)):
            ids = torch.tensor(seen, dtype=torch.long, device=rows.device)
            row[ids] = torch.where(row[ids] < 0, row[ids] * penalty, row[ids] / penalty)
        return rows

    def _scaled(self, rows: Tensor, best: Tensor) -> Tensor:
        """Rows [B, V] over the temperature, their maximum 0: no overflow where it is tiny."""
        return (rows - rows.gather(-1, best)) / self.params.temperature

    def _left(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that top-k, top-p and min-p leave of a row [V] with the maximum 0, ascending, and their softmax.

        A large vocabulary is never sorted for the few that are left: the likeliest are looked at until it is clear that
        no other can be among them."""
        params, size = self.params, len(row)
        count = params.top_k + TIES if params.top_k else FIRST
        if not (0 < params.top_k < size or params.top_p < 1 or params.min_p > 0):
            return torch.arange(size, device=row.device), row.softmax(-1)
        while True:
            count = size if count > MOST else min(count, size)
            values, ids = (found[0] for found in largest(row[None], count))
            left = self._first(values, row)
            if left is not None:
                break
            count *= 8
        ids, order = ids[:left].sort()
        return ids, values[:left].softmax(-1)[order]

    def _first(self, values: Tensor, row: Tensor) -> int | None:
        """How many of a row's likeliest tokens are left, by their values in descending order; None if there may be
        more behind them."""
        params, sure = self.params, len(values) == len(row)
        if 0 < params.top_k < len(row):
            kept = values[values >= values[params.top_k - 1]]  # ties with the k-th stay
            if not sure and len(kept) == len(values):
                return None
            values, sure, probs = kept, True, kept.softmax(-1)
        else:
            probs = (values - row.logsumexp(-1)).exp()
        left = len(values)
        if params.top_p < 1:
            left = int((probs.cumsum(-1) - probs < params.top_p).sum())  # by the mass of the likelier ones
        if params.min_p > 0:
            probs = values[:left].softmax(-1)
            left = int((probs >= params.min_p * probs[0]).sum())
        return left if sure or left < len(values) else None


def _check(
    name: str, value: object, low: int, high: float = math.inf, above: bool = False, whole: bool = False
) -> None:
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not (low <= value <= high) or value == math.inf or (above and value == low):  # type: ignore[operator]
        kind = "a whole number" if whole else "a number"
        upper = "" if high == math.inf else f" and at most {high}"
        raise UsageError(
            f"{name} is {value!r}.", f"It must be {kind} {'above' if above else 'of at least'} {low}{upper}."
        )

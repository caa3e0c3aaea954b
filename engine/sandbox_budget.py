"""What a running chat template may still use: characters made, time, depth. `sandbox.py` calls it at every step.

A value costs the characters it has when written out, an element of a container `SLOT` more. The budget of a render
lives in a context variable, so renders in several threads do not meet; there is none while a template is compiled, and
whatever asks for it then fails, so that jinja2 computes nothing ahead of time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from jinja2.utils import Namespace

from fluvial.adapters.errors import UnsupportedError

SLOT = 8
CONTAINERS: Any = (list, tuple, dict, type({}.items()), type({}.keys()), type({}.values()))


@dataclass(frozen=True)
class Limits:
    """Caps for one template: characters of `source`, of `output` (and of any one value), characters made in all
    (`work`), wall `seconds`, `depth` of macro calls, `bits` of an integer. Input of size n (`size_of`) adds 8n to
    `output` and 64n to `work`."""

    source: int = 128 * 1024
    output: int = 1 << 20
    work: int = 32 << 20
    seconds: float = 5.0
    depth: int = 64
    bits: int = 4096


@dataclass
class Budget:
    """The rest of a render's limits. Errors: UnsupportedError when one is passed."""

    limits: Limits
    input_size: int
    depth: int = 0
    weights: dict[int, tuple[object, int]] = field(default_factory=dict)  # by id; holds the object, so no id comes back

    def __post_init__(self) -> None:
        self.largest = self.limits.output + 8 * self.input_size
        self.left = self.limits.work + 64 * self.input_size
        self.deadline = time.monotonic() + self.limits.seconds

    def spend(self, cost: int = 1) -> None:
        """Take `cost` characters, before they are made."""
        self.left -= cost
        if cost > self.largest or self.left < 0:
            raise stopped("it makes values that are too large")
        if time.monotonic() > self.deadline:
            raise stopped(f"it ran for more than {self.limits.seconds} seconds")

    def weigh(self, value: Any) -> int:
        """Characters of `value` when written out; a part that is shared counts each time it would be written."""
        if isinstance(value, str):
            return len(value) + 1
        if isinstance(value, Namespace):
            raise stopped("it uses a namespace as a value")  # it can change, so its weight cannot be remembered
        if not isinstance(value, CONTAINERS):
            return 1
        if (known := self.weights.get(id(value))) is None:
            parts: Iterable[Any] = chain.from_iterable(value.items()) if isinstance(value, dict) else value
            total = 1
            for part in parts:
                total += self.weigh(part) + SLOT
                if total > self.largest:
                    raise stopped("it makes values that are too large")
            known = self.weights[id(value)] = (value, total)
        return known[1]

    def keep(self, value: Any) -> Any:
        """Pay for a value that was just made, and give it back."""
        if isinstance(value, CONTAINERS):
            self.weigh(value)
            self.spend(1 + SLOT * len(value))
        else:
            self.spend(1 + len(value) if isinstance(value, str) else 1)
            if isinstance(value, int) and value.bit_length() > self.limits.bits:
                raise stopped("it makes values that are too large")
        return value

    def text(self, value: Any) -> str:
        """`str(value)`, paid for first."""
        self.spend(self.weigh(value))
        return value if isinstance(value, str) else str(value)

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same items, each paid for."""
        for item in items:
            self.spend(SLOT)
            yield item

    def join(self, pieces: Iterable[str], between: str = "") -> str:
        """`between.join(pieces)`, paid for piece by piece."""
        made: list[str] = []
        total = 0
        for piece in pieces:
            total += len(piece) + len(between)
            if total > self.largest:
                raise stopped("it makes values that are too large")
            self.spend(SLOT + len(piece) + len(between))
            made.append(piece)
        return between.join(made)


def size_of(value: object) -> int:
    """Characters of JSON-like input, plus `2 * SLOT` for each element."""
    if isinstance(value, Mapping):
        return sum(size_of(key) + size_of(item) + 2 * SLOT for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(size_of(item) + 2 * SLOT for item in value)
    return len(value) if isinstance(value, str) else 1


ACTIVE: ContextVar[Budget] = ContextVar("fluvial_template_budget")


def stopped(why: str) -> UnsupportedError:
    """The error that ends a template."""
    return UnsupportedError("The chat template was stopped:", f"{why}.", "Use another chat template.")

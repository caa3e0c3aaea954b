"""`Depths`: what a model's sessions know together of drafting, so that no answer begins to learn anew."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from fluvial.engine.costs import Costs, measured
from fluvial.engine.depth import Depth
from fluvial.models.decoder import Decoder


class Depths:
    """One controller for each kind of draft under each set of plugins: these change costs and what is right."""

    def __init__(self) -> None:
        self._costs, self._depths = dict[frozenset[str], Costs](), dict[tuple[str, frozenset[str]], Depth]()
        self._lock = threading.Lock()

    def measure(self, decoder: Decoder) -> None:
        """Measures forwards without plugins, unless that was done."""
        with self._lock:
            if frozenset() not in self._costs:
                self._costs[frozenset()] = measured(decoder)

    def of(self, draft: str, plugins: Mapping[str, float] | None) -> Depth:
        """The controller of the draft of that name."""
        under = frozenset(plugins or ())
        with self._lock:
            costs = self._costs.setdefault(under, Costs())
            return self._depths.setdefault((draft, under), Depth(costs))

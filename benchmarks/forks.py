"""What a thousand forks of a session cost that has read 100,000 tokens, each going on with 20 tokens of its own.

    python benchmarks/forks.py [--tokens 100000] [--forks 1000]

Bytes are those of every block of memory that the forks hold, each counted once. The rows of attention are random, and
appended without a forward: their values cost nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from fluvial import Model, load_model
from fluvial.models.attention import Attention
from fluvial.models.state import State
from fluvial.models.tape import Tape

OWN = 20  # tokens that each fork adds


def grown(state: State, tokens: int) -> State:
    """The state as if it had read so many tokens."""
    leaves = dict(state.leaves)
    for name, leaf in leaves.items():
        if isinstance(leaf, Tape):
            k, v = (torch.randn(*rows.shape[:2], tokens, rows.shape[3]) for rows in leaf.rows)
            leaves[name] = Tape.of(k, v, (tokens,))
    return State(leaves, (tokens,), state.model)


def gone_on(model: Model, fork: State) -> State:
    """The fork with tokens of its own."""
    tapes = {name: leaf for name, leaf in fork.leaves.items() if isinstance(leaf, Tape)}
    if not tapes:
        return model(torch.arange(OWN)[None] + 300, fork)[1]
    attention = next(m for m in model.decoder.modules() if isinstance(m, Attention))
    k, v = torch.randn(2, 1, attention.kv_heads, OWN, attention.d_head)
    longer = {name: tape.append(k, v, (OWN,)) for name, tape in tapes.items()}
    return State({**fork.leaves, **longer}, (fork.position[0] + OWN,), fork.model)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--forks", type=int, default=1000)
    options = parser.parse_args()
    print(f"{'model':20} {'trunk':>12} {'all forks':>14} {'a fork':>10} {'an own token':>13} {'to fork':>9}")
    for name in ("pebble", "pebble/transformer"):
        model = load_model(name)
        trunk = grown(model(torch.tensor([[5, 6, 7]]))[1], options.tokens)
        before, seconds, forks = sum(trunk.storages().values()), list[float](), list[State]()
        for _ in range(options.forks):
            began = time.perf_counter()
            fork = trunk.fork()
            seconds.append(time.perf_counter() - began)
            forks.append(gone_on(model, fork))
        held = trunk.storages()
        for fork in forks:
            held |= fork.storages()
        added = sum(held.values()) - before
        print(
            f"{name:20} {before:12,} {added:14,} {added // len(forks):10,} {added // len(forks) // OWN:13,}"
            f" {1e6 * statistics.median(seconds):6.1f} us"
        )


if __name__ == "__main__":
    main()

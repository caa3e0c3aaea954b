"""Aggregation (RULER): the words that are common among many, and the most frequent of a Zipf-like few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from fluvial.engine.recall import filler
from fluvial.engine.recall.task import Draw, Question, Room, Stream, Task

TOP = 3
RARE = 60
GROUP = 8  # words in a piece


def counted(weights: Sequence[float]) -> Callable[[Draw, Room], Stream]:
    """A stream of made-up words, the i-th one as likely as `weights[i]` says; the `TOP` likeliest are asked for. They
    lead by what was really drawn: a stream too short to tell is completed with them."""

    def stream(draw: Draw, room: Room) -> Stream:
        rng = draw.rng()
        words, shares = filler.names(rng, len(weights)), [weight / sum(weights) for weight in weights]
        seen: Counter[str] = Counter()
        yield "Words: "
        while room.before(1):
            group = [words[i] for i in rng.choice(len(words), GROUP, p=shares).tolist()]
            seen.update(group)
            yield " ".join(group) + " "
        top, rest = words[:TOP], max(seen[word] for word in words[TOP:])
        missing = [word for word in top for _ in range(rest + 1 - seen[word])]
        if missing:
            yield " ".join(missing) + " "
        others = tuple(words[TOP:])
        return [Question(f"What are the {TOP} most frequent words?", tuple(top), 0, others)]

    return stream


COMMON = [10.0] * TOP + [1.0] * RARE
ZIPF = [1.0 / rank**2 for rank in range(1, 13)]
TASKS = (
    Task("common-words", f"{TOP} words that occur ten times as often as {RARE} others", counted(COMMON)),
    Task("frequent-words", f"the first {TOP} of words that are as frequent as 1/rank^2", counted(ZIPF)),
)

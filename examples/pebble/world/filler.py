"""Text that means nothing, of as many kinds as possible: what a memory must read past without being overwritten.

Two kinds are held out: they appear in evaluation only, to show that recall does not depend on known filler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .filler_words import ENGLISH, LANGUAGES, VOYAGE, Grammar

ASCII = "".join(map(chr, range(32, 127)))
LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYLLABLES = """
ba be bi bo da de do fa fi ga go ha ka ke ko la le lo ma me mi mo na ne no pa pe po ra re ri ro sa se so ta te
to tra sti ul en or an is va vo wa zu
"""
SYLLABLES = tuple(_SYLLABLES.split())


def picks(rng: np.random.Generator, items: Sequence[str], n: int) -> list[str]:
    return [items[i] for i in rng.integers(0, len(items), n).tolist()]


def _sentence(rng: np.random.Generator, grammar: Grammar) -> str:
    words, patterns, gap, end = grammar
    out = []
    for slot in patterns[rng.integers(len(patterns))].split(" "):
        if gap:
            name, tail = (slot[:-1], slot[-1]) if slot[-1] in ",:?" else (slot, "")
            out.append(words[name][rng.integers(len(words[name]))] + tail if name in words else slot)
        else:
            out += [words[c][rng.integers(len(words[c]))] if c in words else c for c in slot]
    text = gap.join(out).replace("_", " ")
    return text[:1].upper() + text[1:] + end + gap


def _sentences(grammar: Grammar) -> Callable[[np.random.Generator, int], Iterable[str]]:
    def generate(rng: np.random.Generator, n: int) -> Iterable[str]:
        while True:
            yield _sentence(rng, grammar)

    return generate


def _pseudo(rng: np.random.Generator, n: int) -> Iterable[str]:
    """Sentences over a vocabulary made up for this text alone."""
    words = ["".join(picks(rng, SYLLABLES, k)) for k in rng.integers(1, 5, int(rng.integers(8, 300)))]
    while True:
        yield " ".join(picks(rng, words, int(rng.integers(3, 12)))).capitalize() + picks(rng, ".!?;", 1)[0] + " "


def _alphabet(alphabet: str, low: int, high: int) -> Callable[[np.random.Generator, int], Iterable[str]]:
    def generate(rng: np.random.Generator, n: int) -> Iterable[str]:
        gap = picks(rng, (" ", " ", "\n", "", ","), 1)[0]
        while True:
            yield "".join(picks(rng, alphabet, int(rng.integers(low, high)))) + gap

    return generate


def _code(rng: np.random.Generator, n: int) -> Iterable[str]:
    nouns = ENGLISH[0]["N"]
    forms = (
        "def {a}({b}, {c}):\n    return {b} + {n}\n", "for {a} in range({n}):\n    {b}.append({a} * {m})\n",
        "if {a} > {n}:\n    {b} = {c}({m})\n", "while not {a}.{b}:\n    {a}.{c}()\n", "import {a}\n",
        "class {a}({b}):\n    pass\n", "let {a} = {b}[{n}];\n", "print(f'{a} {n}')\n", "# {a} {b} {c}\n",
        "int {a}(float {b}) {{ return {b} / {n}; }}\n", "SELECT {a} FROM {b} WHERE {c} < {n};\n",
    )  # fmt: skip
    while True:
        a, b, c = picks(rng, nouns, 3)
        n, m = rng.integers(0, 1000, 2).tolist()
        yield forms[rng.integers(len(forms))].format(a=a, b=b, c=c, n=n, m=m)


def _json(rng: np.random.Generator, n: int) -> Iterable[str]:
    indent = 2 if rng.random() < 0.3 else None
    while True:
        names = picks(rng, ENGLISH[0]["N"], int(rng.integers(1, 5)))
        values = [picks(rng, LETTERS, 4), float(rng.integers(0, 10000)) / 10, True, None, int(rng.integers(0, 99999))]
        row = {k: values[v] for k, v in zip(names, rng.integers(0, 5, len(names)).tolist(), strict=True)}
        yield json.dumps(row, indent=indent) + "\n"


def _log(rng: np.random.Generator, n: int) -> Iterable[str]:
    while True:
        h, m, s, code = rng.integers(0, (24, 60, 60, 600)).tolist()
        level, word = picks(rng, ("INFO", "WARN", "DEBUG", "ERROR"), 1)[0], picks(rng, ENGLISH[0]["N"], 2)
        yield f"{h:02}:{m:02}:{s:02} {level} {word[0]}/{word[1]} status {code}\n"


def _table(rng: np.random.Generator, n: int) -> Iterable[str]:
    gap, columns = picks(rng, (",", ";", "\t", " | "), 1)[0], int(rng.integers(2, 7))
    while True:
        yield gap.join(str(v) for v in rng.integers(0, 10 ** int(rng.integers(1, 6)), columns).tolist()) + "\n"


def _shuffled(rng: np.random.Generator, n: int) -> Iterable[str]:
    pool = [word for g in LANGUAGES.values() for words in g[0].values() for word in words]
    while True:
        yield " ".join(picks(rng, pool, 16)).replace("_", " ") + " "


def _repeated(rng: np.random.Generator, n: int) -> Iterable[str]:
    line = filler(rng, int(rng.integers(4, 60)), picks(rng, ("english", "letters", "chinese", "ascii", "log"), 1)[0])
    while True:
        yield line + "\n"


def _markup(rng: np.random.Generator, n: int) -> Iterable[str]:
    while True:
        tag, name = picks(rng, ("div", "p", "li", "h2", "td", "section"), 1)[0], picks(rng, VOYAGE[0]["S"], 2)
        width = rng.integers(1, 900)
        yield f'<{tag} class="{name[0]}" width="{width}px">{name[1]} &amp; {name[0]}</{tag}>\n'


_KINDS: dict[str, Callable[[np.random.Generator, int], Iterable[str]]] = {
    **{name: _sentences(grammar) for name, grammar in LANGUAGES.items()},
    "pseudo": _pseudo,
    "letters": _alphabet(LETTERS, 1, 9),
    "digits": _alphabet("0123456789", 1, 8),
    "hex": _alphabet("0123456789abcdef", 2, 17),
    "ascii": _alphabet(ASCII, 5, 40),
    "unicode": _alphabet("àéîõüßñçøåπλΩжщ中文字日本語한국→€✓😀🌊" + LETTERS, 2, 10),
    "code": _code,
    "json": _json,
    "log": _log,
    "table": _table,
    "shuffled": _shuffled,
    "repeated": _repeated,
    "markup": _markup,
    "voyage": _sentences(VOYAGE),
}
HELD_OUT_FILLER = ("markup", "voyage")
FILLER_KINDS = tuple(k for k in _KINDS if k not in HELD_OUT_FILLER)


def filler(rng: np.random.Generator, n_chars: int, kind: str | None = None, held_out: bool = False) -> str:
    """Exactly n_chars characters of one kind (drawn if None).

    `held_out=True` is for evaluation: it draws from the held-out kinds. Raises ValueError for an unknown kind, and for
    a held-out kind without `held_out`.
    """
    allowed = HELD_OUT_FILLER if held_out else FILLER_KINDS
    if kind is None:
        kind = allowed[rng.integers(len(allowed))]
    if kind not in allowed:
        raise ValueError(f"no filler kind {kind!r} with held_out={held_out}; there are {allowed}")
    parts, length = [], 0
    for part in _KINDS[kind](rng, n_chars):
        if length >= n_chars:
            break
        parts.append(part)
        length += len(part)
    return "".join(parts)[:n_chars]

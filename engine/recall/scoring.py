"""Whether an answer says what it should: by whole words, whatever their case and punctuation."""

from __future__ import annotations

import re

from fluvial.engine.recall.task import Question

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SPELLED = {name: str(number) for number, name in enumerate(NUMBERS)}


def score(answer: str, question: Question) -> float:
    """The share of the expected that the answer names; 0 if it names what is not so.

    "The key is 71432." names 71432; "171432" does not. A list of guesses gains nothing: neither one of the `others` nor
    any further number as long as an expected one may be named.
    """
    words = _words(answer)
    if any(_names(words, other) for other in question.others):
        return 0.0
    numbers = {expected for expected in question.answers if expected.isdecimal()}
    if any(word.isdecimal() and len(word) in map(len, numbers) and word not in numbers for word in words):
        return 0.0
    return sum(_names(words, expected) for expected in question.answers) / len(question.answers)


def _words(text: str) -> list[str]:
    return [SPELLED.get(word, word) for word in re.findall(r"\w+", text.casefold())]


def _names(words: list[str], text: str) -> bool:
    sought = _words(text)
    return any(words[i : i + len(sought)] == sought for i in range(len(words) - len(sought) + 1))

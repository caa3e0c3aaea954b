"""Whole numbers in English words, as some published prompts spell them: "one hundred and five"."""

from __future__ import annotations

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """0 <= number < 1,000,000; "one thousand, two hundred and four". Errors: ValueError."""
    if not 0 <= number < 1_000_000:
        raise ValueError(f"{number} has no words here")
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    more, rest = divmod(number, size)
    words = f"{in_words(more)} {name}"
    if not rest:
        return words
    return f"{words}{', ' if rest >= 100 else ' and '}{in_words(rest)}"

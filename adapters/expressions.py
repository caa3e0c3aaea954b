"""Regular expressions that came in a file, matched in a bounded number of steps.

Python's `re` backtracks, so that a short expression from a stranger keeps it busy for years. Here a part of the
expression takes the whole set of places that are reached so far to those that follow (Thompson 1968), and pays for
each; what costs too much, or has no such form (references back, atomic groups, flags), is refused. `re` itself parses,
and matches what has neither repeats nor choices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from fluvial.adapters.errors import IntegrityError, UnsupportedError

LONGEST, STEPS = 4096, 20_000  # characters of an expression, places visited in one match
_parser: Any = import_module("re._parser")
_COSTLY = re.compile(r"[*+?{|(]")
_CLASSES = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": lambda c: c.isalnum() or c == "_"}
Parts = Sequence[tuple[Any, Any]]  # what re's parser gives: operations with their operands


def match(form: str, expression: str, text: str) -> bool:
    """Whether `re.match` finds `form`, with the expression in place of its {}, in the text.

    Raises `IntegrityError` for a broken expression, `UnsupportedError` for one that is too long, costly or special.
    """
    return bool(_ends(expression, form.format(expression), text))


def fullmatch(expression: str, text: str) -> bool:
    """As `re.fullmatch`; errors as `match`."""
    return len(text) in _ends(expression, expression, text)


def plain(expression: str) -> bool:
    """Whether it has neither repeats nor choices, so that it costs `re` nothing."""
    return not _COSTLY.search(expression)


def _ends(expression: str, whole: str, text: str) -> set[int]:
    """Where a match of `whole`, which holds a file's expression, can end."""
    if len(expression) > LONGEST:
        raise _refused(expression, f"It has {len(expression)} characters.")
    try:
        if plain(expression):
            found = re.match(whole, text)
            return set() if found is None else {found.end()}
        return _Search(expression, text).after(_parsed(whole), {0})
    except (re.error, OverflowError) as error:
        raise IntegrityError(f"The plugin's expression {expression!r:.80} is damaged.", str(error)) from error
    except RecursionError as error:
        raise _refused(expression, "It is nested too deeply.") from error


@lru_cache(1024)
def _parsed(expression: str) -> Parts:
    parsed: Any = _parser.parse(expression)
    if parsed.state.flags & ~re.UNICODE:
        raise _refused(expression, "It has flags.")
    return tuple(parsed)


def _refused(expression: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"The plugin's expression {expression!r:.80} is not supported.", why, "Name the modules in a list."
    )


class _Search:
    """One expression on one text."""

    def __init__(self, expression: str, text: str) -> None:
        self.expression, self.text, self.steps = expression, text, 0

    def after(self, parts: Parts, places: set[int]) -> set[int]:
        """Where a match of all parts in turn that begins at one of the places can end."""
        for operation, operand in parts:
            self.steps += 1 + len(places)
            if self.steps > STEPS:
                raise _refused(self.expression, f"It takes more than {STEPS:,} steps.")
            places = self._one(str(operation), operand, places)
            if not places:
                break
        return places

    def _one(self, operation: str, operand: Any, places: set[int]) -> set[int]:
        match operation:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                end = len(self.text)
                return {at + 1 for at in places if at < end and _takes(operation, operand, self.text[at])}
            case "BRANCH":
                return set().union(*(self.after(branch, places) for branch in operand[1]))
            case "SUBPATTERN" if not operand[1] and not operand[2]:
                return self.after(operand[3], places)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, parts = operand
                return self._repeated(least, most, parts, places)
            case "ASSERT" | "ASSERT_NOT":
                direction, parts = operand
                return {at for at in places if self._around(direction, parts, at) is (operation == "ASSERT")}
            case "AT":
                return {at for at in places if self._at(str(operand), at)}
        raise _refused(self.expression, f"It has {operation.lower().replace('_', ' ')}.")

    def _repeated(self, least: int, most: int, parts: Parts, places: set[int]) -> set[int]:
        ends, count = set[int](), 0
        while places:
            if count >= least:
                ends |= places
            if count == most:
                break
            places, count = self.after(parts, places), count + 1
            if count > least:
                places = places - ends  # they have been gone on from
        return ends

    def _around(self, direction: int, parts: Parts, at: int) -> bool:
        if direction > 0:
            return bool(self.after(parts, {at}))
        return any(at in self.after(parts, {start}) for start in range(at + 1))

    def _at(self, where: str, at: int) -> bool:
        if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return at == 0
        if where in ("AT_END", "AT_END_STRING"):
            return at == len(self.text) or (where == "AT_END" and self.text[at:] == "\n")
        if where == "AT_BOUNDARY":
            before, after = (
                _CLASSES["WORD"](c) for c in (self.text[at - 1 : at] or " ", self.text[at : at + 1] or " ")
            )
            return before != after
        raise _refused(self.expression, f"It has {where.lower().replace('_', ' ')}.")


def _takes(operation: str, operand: Any, character: str) -> bool:
    if operation == "ANY":
        return character != "\n"
    if operation != "IN":
        return (ord(character) == operand) is (operation == "LITERAL")
    negated = str(operand[0][0]) == "NEGATE"
    return any(_holds(str(kind), value, character) for kind, value in operand[negated:]) is not negated


def _holds(kind: str, value: Any, character: str) -> bool:
    if kind == "LITERAL":
        return ord(character) == value
    if kind == "RANGE":
        return bool(value[0] <= ord(character) <= value[1])
    name = str(value).removeprefix("CATEGORY_")
    return _CLASSES[name.removeprefix("NOT_")](character) is not name.startswith("NOT_")

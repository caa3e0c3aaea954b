"""What a chat template may call: filters, tests, functions and methods, each paying the budget (`sandbox_budget.py`).

An operation whose result can be much larger than its arguments (`replace`, `join`, `indent`, formatting) is written
here so that it pays first; the others pay for what they read and what they made. They mean what they mean in jinja2 and
in Transformers (whose `tojson` keeps non-ASCII and escapes no HTML).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from types import GeneratorType
from typing import Any

from jinja2 import TemplateError, pass_environment
from jinja2.environment import Environment
from jinja2.filters import FILTERS, do_indent, make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from fluvial.engine.sandbox_budget import ACTIVE, stopped

_LIGHT = "abs count d default first float int items last length map reject rejectattr safe select selectattr"
_HEAVY = "capitalize dictsort e escape list lower max min reverse sort title trim unique upper"
_STR = """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric
isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit
rstrip split splitlines startswith strip swapcase title upper"""
METHODS: list[tuple[type, list[str]]] = [
    (str, _STR.split()),
    (dict, ["copy", "get", "items", "keys", "values"]),
    (list, ["copy", "count", "index"]),
    (tuple, ["count", "index"]),
    (LoopContext, ["changed", "cycle"]),
]
_PERCENT = re.compile(r"(?:%(?:\(\w+\))?[-0+ ]?\d{0,2}(?:\.\d{1,2})?[sdifr]|%%|[^%])*+", re.DOTALL)
_BRACES = re.compile(r"(?:\{\w*\}|\{\{|\}\}|[^{}])*+", re.DOTALL)


class Refusal(TemplateError):
    """The template itself refused the messages, by `raise_exception`."""


def percent(text: str, values: Any) -> str:
    """`text % values`; widths of at most two digits."""
    if not _PERCENT.fullmatch(text):
        raise stopped(f"the format {text[:40]!r} is not allowed")
    budget = ACTIVE.get()
    budget.spend(len(text) + text.count("%") * (99 + 2 * budget.weigh(values)))
    return str(text % values)


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    return percent(text, kwargs or args)


class Braces:
    """`text.format`, for plain fields only: no widths, attributes or items."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if not _BRACES.fullmatch(self._text):
            raise stopped(f"the format {self._text[:40]!r} is not allowed")
        budget = ACTIVE.get()
        budget.spend(len(self._text) + self._text.count("{") * 2 * (budget.weigh(args) + budget.weigh(kwargs)))
        return self._text.format(*args, **kwargs)


def replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """`str.replace`, the filter and the method."""
    budget = ACTIVE.get()
    whole, before, after = budget.text(text), budget.text(old), budget.text(new)
    budget.spend(whole.count(before) * len(after))
    return whole.replace(before, after, -1 if count is None else count)


@pass_environment
def _join(environment: Environment, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    budget = ACTIVE.get()
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return budget.join((budget.text(item) for item in value), budget.text(d))


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    budget = ACTIVE.get()
    s = budget.text(s)
    budget.spend((len(s.splitlines()) + 1) * (len(width) if isinstance(width, str) else abs(int(width))))
    return str(do_indent(s, width, first, blank))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise stopped("its JSON has an indent that is not allowed")
    budget = ACTIVE.get()
    budget.weigh(value)
    for separator in separators or ():
        if len(separator) > 16:
            raise stopped("its JSON has separators that are not allowed")
    coder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return budget.join(coder.iterencode(value))


def _guarded(function: Any, heavy: bool) -> Callable[..., Any]:
    first = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = ACTIVE.get()
        budget.spend()
        if heavy and len(args) > first:
            budget.keep(args[first])
        result = function(*args, **kwargs)
        if isinstance(result, GeneratorType):
            return budget.each(result)
        return budget.keep(result) if heavy else result

    return guarded


def _raise_exception(message: object = "") -> None:
    raise Refusal(str(message)[:1000])


def _strftime_now(form: str) -> str:
    if len(form) > 200:
        raise stopped("its date format is too long")
    return datetime.now().strftime(form)


def _range(*args: int) -> range:
    made = range(*args)
    if len(made) > 100_000:
        raise stopped("it asks for a range of more than 100,000")
    return made


FUNCTIONS: dict[str, Any] = {"range": _range, "dict": dict, "namespace": Namespace}
FUNCTIONS |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
ALLOWED_TESTS: dict[str, Any] = {name: _guarded(TESTS[name], heavy=False) for name in TESTS}
ALLOWED_FILTERS: dict[str, Any] = {name: _guarded(FILTERS[name], heavy=False) for name in _LIGHT.split()}
ALLOWED_FILTERS |= {name: _guarded(FILTERS[name], heavy=True) for name in _HEAVY.split()}
ALLOWED_FILTERS |= {"join": _join, "replace": replace, "indent": _indent, "format": _format, "tojson": _tojson}
ALLOWED_FILTERS["string"] = lambda value: ACTIVE.get().text(value)

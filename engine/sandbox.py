"""Chat templates run here: jinja2's immutable sandbox with a budget, because a template is a program from a stranger.

The sandbox keeps a template away from Python's insides; the budget keeps it from taking the machine. Nothing is
interrupted from outside (no signals, so it works in any thread): the compiled template itself reports at every block,
comparison, call, filter, test and operator, and an operation that makes a value pays for its size first.

Bounded: the source, the wall time, characters made in all and at once, the output, `range`, integers, the depth of
macro calls. A filter, function or method that `sandbox_filters.py` does not list does not exist. Not bounded: the time
to compile a source of the largest size (seconds), and one operation on a value of the largest size (about 0.1 s past
the deadline).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Template, TemplateSyntaxError, pass_context
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fluvial.adapters.errors import FluvialError, IntegrityError, UnsupportedError, UsageError
from fluvial.engine.sandbox_budget import ACTIVE, SLOT, Budget, Limits, size_of, stopped
from fluvial.engine.sandbox_compiler import BudgetedCode, Generation
from fluvial.engine.sandbox_filters import (
    ALLOWED_FILTERS,
    ALLOWED_TESTS,
    FUNCTIONS,
    METHODS,
    Braces,
    Refusal,
    percent,
    replace,
)


@pass_context  # also keeps jinja2 from working out constants while it compiles
def _written(context: Context, value: Any) -> str:
    return ACTIVE.get().text(value)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    code_generator_class = BudgetedCode

    def __init__(self) -> None:
        extensions: list[Any] = ["jinja2.ext.loopcontrols", Generation]
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False, finalize=_written
        )
        self.filters, self.tests, self.globals = ALLOWED_FILTERS, ALLOWED_TESTS, FUNCTIONS

    def tick(self, value: Any = None) -> Any:
        ACTIVE.get().spend()
        return value

    def keep(self, value: Any) -> Any:
        return ACTIVE.get().keep(value)

    def join_values(self, values: tuple[Any, ...]) -> str:
        budget = ACTIVE.get()
        return budget.join(budget.text(value) for value in values)

    def concat(self, pieces: Iterable[str]) -> str:
        return ACTIVE.get().join(pieces)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        is_format = isinstance(value, BuiltinMethodType) and value.__name__ == "format"
        return Braces(value.__self__) if is_format and isinstance(value.__self__, str) else None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = ACTIVE.get()
        budget.spend()
        budget.depth += 1
        if budget.depth > budget.limits.depth:
            raise stopped("its macros call each other too deep")
        try:
            return budget.keep(super().call(__context, __self._allowed(__obj), *args, **kwargs))
        finally:
            budget.depth -= 1

    def _allowed(self, function: Any) -> Any:
        if isinstance(function, Macro | LoopContext | BlockReference | Undefined | Braces):
            return function
        if isinstance(function, BuiltinMethodType | MethodType):
            owner, name = function.__self__, function.__name__
            if any(isinstance(owner, kind) and name in names for kind, names in METHODS):
                if isinstance(owner, str) and name in ("replace", "join"):
                    return partial(replace, owner) if name == "replace" else partial(self._join, owner)
                return function
        elif any(function is known for known in FUNCTIONS.values()):
            return function
        raise SecurityError(f"{getattr(function, '__name__', type(function).__name__)!r} cannot be called here")

    @staticmethod
    def _join(between: str, pieces: Iterable[str]) -> str:
        return ACTIVE.get().join(pieces, between)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = ACTIVE.get()
        if operator == "%" and isinstance(left, str):
            return percent(left, right)
        if operator == "+":
            budget.spend(sum(len(x) if isinstance(x, str) else SLOT * len(x) for x in (left, right) if _sized(x)))
        elif operator == "*" and (_sized(left) or _sized(right)):
            many, times = (left, right) if _sized(left) else (right, left)
            budget.spend(budget.weigh(many) * max(int(times), 0))
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            size = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if abs(size) > budget.limits.bits:
                raise stopped("it makes values that are too large")
        return budget.keep(super().call_binop(context, operator, left, right))


def _sized(value: object) -> bool:
    return isinstance(value, str | list | tuple)


@cache
def _sandbox() -> _Sandbox:
    return _Sandbox()


def compile_template(source: str, limits: Limits) -> Template:
    """The template of `source`. Errors: IntegrityError if it is malformed, UnsupportedError if it is too long or uses
    what the sandbox lacks."""
    if len(source) > limits.source:
        raise UnsupportedError(f"The chat template has {len(source)} characters, more than {limits.source}.")
    try:
        return _sandbox().from_string(source)
    except TemplateAssertionError as error:
        raise UnsupportedError("The chat template needs what is not offered:", f"{error.message}.") from error
    except TemplateSyntaxError as error:
        raise IntegrityError("The chat template is malformed:", f"line {error.lineno}: {error.message}") from error
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise IntegrityError("The chat template cannot be compiled:", f"{error}.") from error


def run_template(template: Template, variables: Mapping[str, Any], limits: Limits) -> str:
    """What the template writes for `variables` (JSON-like values).

    Errors: UsageError if the template refuses the messages, UnsupportedError if it passes a limit, leaves the sandbox
    or fails."""
    budget = Budget(limits, size_of(variables))
    token = ACTIVE.set(budget)
    try:
        return budget.join(template.generate(dict(variables)))
    except FluvialError:
        raise
    except Refusal as error:
        raise UsageError("The chat template refuses these messages:", str(error)) from error
    except SecurityError as error:
        raise UnsupportedError("The chat template was stopped:", f"{error}.", "Use another chat template.") from error
    except RecursionError as error:
        raise stopped("it calls itself too deep") from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}"[:500]
        raise UnsupportedError("The chat template failed on these messages:", why) from error
    finally:
        ACTIVE.reset(token)

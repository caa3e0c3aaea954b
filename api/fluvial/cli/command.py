"""`command`: registers a function with typer so that its errors become exit codes and its options may be a dataclass.

Two commands share two dozen options. Typer reads a function's signature, so the fields of a dataclass parameter are
written into it, and gathered again before the function is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, Any

import typer

from fluvial.cli.errors import reported

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output")]


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], None]:
    """Adds the decorated function to `app`, with `--debug` and its dataclass parameters as options."""

    def register(function: Callable[..., None]) -> None:
        own = inspect.signature(function, eval_str=True).parameters
        groups: dict[str, Any] = {n: p.annotation for n, p in own.items() if is_dataclass(p.annotation)}
        fields = {n: inspect.signature(group, eval_str=True).parameters for n, group in groups.items()}

        def call(*, debug: bool, **given: Any) -> None:
            for group, parameters in fields.items():
                given[group] = groups[group](**{n: given.pop(n) for n in parameters})
            with reported(debug):
                function(**given)

        debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
        flat = [p for n, p in own.items() if n not in groups] + [p for ps in fields.values() for p in ps.values()]
        signature = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in flat), debug]
        call.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in signature}
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        app.command(name)(call)

    return register

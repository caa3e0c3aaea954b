"""The terminal: the answer on stdout, notes, warnings, errors and progress on stderr; progress only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# What a model or a file name says must not steer the terminal: control characters are shown as pictures (U+2400 ...).
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def visible(text: str) -> str:
    """The text without control characters that a terminal would obey."""
    return text.translate(_VISIBLE)


def answer(text: str) -> None:
    """A piece of the answer, at once."""
    sys.stdout.write(visible(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A remark, dim."""
    _say(text, "dim")


def warn(text: str) -> None:
    _say(text, "", "Warning: ", "bold yellow")


def error_lines(what: str, why: str, hint: str) -> None:
    """What went wrong, then why and the next step, each on its own line."""
    _say(what, "", "Error: ", "bold red")
    if why:
        _say(f"  {why}", "")
    if hint:
        _say(f"  {hint}", "cyan")


def _say(text: str, style: str, label: str = "", label_style: str = "") -> None:
    from rich.text import Text

    line = Text(label, label_style).append(visible(text), style or "not bold default")
    stderr().print(line, soft_wrap=not is_terminal(sys.stderr))


def stderr() -> Console:
    """A console on the present stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner with the seconds that passed, while something takes long."""
    if not is_terminal(sys.stderr):
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", style="dim"), TimeElapsedColumn()
    with Progress(*columns, console=stderr(), transient=True) as progress:
        progress.add_task(visible(what))
        yield


@contextmanager
def frames_read(what: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
    """A bar of frames; gives the function to call with the number seen so far, or None where nobody would see it."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", style="dim"), BarColumn(24), MofNCompleteColumn(), TextColumn("frames")
    with Progress(*columns, TimeElapsedColumn(), console=stderr(), transient=True) as progress:
        task = progress.add_task(visible(what), total=total)
        yield lambda seen: progress.update(task, completed=seen)


def size(count: float) -> str:
    """Bytes for people: 219 KiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError

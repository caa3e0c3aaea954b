"""The lines of a chat: typed with line editing, history and completion where readline is there, or piped in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from fluvial.adapters.errors import UsageError
from fluvial.cli.console import is_terminal, note
from fluvial.cli.interrupts import Interrupts

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'


def piped() -> Iterator[str]:
    """The lines of stdin; text between triple quotes is one."""

    def read(_: str) -> str:
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            raise UsageError("The input is not text.", "It is not UTF-8.") from None
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    if sys.stdin is None:
        return
    yield from _paragraphs(read)


def typed(completions: Callable[[str], list[str]], interrupts: Interrupts) -> Iterator[str]:
    """Lines from the terminal until Ctrl-D; Ctrl-C drops the line."""
    _edit_with(completions)

    def read(prompt: str) -> str:
        if is_terminal(sys.stdout):
            return input(prompt)
        sys.stderr.write(prompt)  # the prompt is not part of the answers
        sys.stderr.flush()
        return input()

    lines = _paragraphs(read)
    while True:
        try:
            with interrupts.allowed():
                line = next(lines)
        except StopIteration:
            sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            note("Ctrl-D or /bye leaves.")
            lines = _paragraphs(read)
        else:
            yield line


def _paragraphs(read: Callable[[str], str]) -> Iterator[str]:
    while True:
        try:
            line = read(PROMPT)
            if line.lstrip().startswith(QUOTES):
                line = line.lstrip().removeprefix(QUOTES)
                while not line.rstrip().endswith(QUOTES):
                    line += "\n" + read(MORE)
                line = line.rstrip().removesuffix(QUOTES)
        except EOFError:
            return
        yield line


def _edit_with(completions: Callable[[str], list[str]]) -> None:
    try:
        import readline
    except ImportError:  # Windows: the console's own editing
        return

    def complete(_: str, number: int) -> str | None:
        line, begin = readline.get_line_buffer(), readline.get_begidx()
        found = [word[begin:] for word in completions(line) if word.startswith(line)]
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

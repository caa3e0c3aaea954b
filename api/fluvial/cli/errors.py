"""How a command ends: an error in a few lines on stderr, without a traceback, and the exit code that scripts read.

0 ok, 1 runtime, 2 usage, 3 model not found, 4 media unreadable, 5 out of memory, 7 integrity, 130 interrupt; a reader
of the answer that went away ends the command quietly with 141, as it ends programs in C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fluvial.adapters.errors import FluvialError, OutOfMemoryError
from fluvial.cli.console import error_lines, note

INTERRUPTED, BROKEN_PIPE = 130, 141
_REPORT = "This is a fault in Fluvial. Run it again with --debug, and report that with the output of `fluvial doctor`."


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Inside, an exception is shown to the user and ends the command with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="replace")  # an answer may hold characters that the terminal has not
    try:
        yield
        sys.stdout.flush()  # a reader that is gone shows here, and not while Python shuts down
    except typer.Exit:
        raise
    except BrokenPipeError:
        _silence()
        raise typer.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        note("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        raise typer.Exit(show(error)) from None


def show(error: Exception) -> int:
    """Prints what went wrong, why and what to do next; returns the exit code."""
    known = explained(error)
    error_lines(known.what, known.why, known.hint)
    return known.exit_code


def explained(error: Exception) -> FluvialError:
    """The error in Fluvial's words, whatever it was."""
    if isinstance(error, FluvialError):
        return error
    if isinstance(error, MemoryError) or _no_memory(error):
        return OutOfMemoryError(
            "Out of memory.", _first_line(error), "Use less media, a smaller model or --dtype bf16."
        )
    return FluvialError("Something unexpected went wrong.", f"{type(error).__name__}: {_first_line(error)}", _REPORT)


def _no_memory(error: Exception) -> bool:
    # torch raises its own OutOfMemoryError on a GPU, and a bare RuntimeError on a CPU
    allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return allocator or type(error).__name__ == "OutOfMemoryError"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _silence() -> None:
    """Points stdout nowhere, so that Python's last flush has nothing to complain about."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # not a real stream
        pass
    finally:
        os.close(nowhere)

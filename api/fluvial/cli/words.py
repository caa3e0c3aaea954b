"""Which of the words after `fluvial run` is the model and which the prompt, and what is piped in.

    fluvial run PROMPT            the bundled model answers
    fluvial run MODEL PROMPT
    ... | fluvial run [MODEL]     the prompt is what is piped in; so it is where PROMPT is `-`
    ... | fluvial run PROMPT      what is piped in stands before the prompt

A lone word that names a model (or looks like a path) is never taken for a prompt: that is an error which says so.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from pathlib import Path

from fluvial.adapters.errors import UsageError
from fluvial.cli.console import is_terminal, note

DEFAULT_MODEL = "pebble"
_EXAMPLE = 'For example: fluvial run -i photo.jpg "What colour is the circle?"'


def model_and_prompt(words: list[str]) -> tuple[str, str]:
    """The model's name and the whole prompt, read from stdin where it has to be; raises `UsageError`."""
    model, prompt = _named(words)
    if prompt == "-":
        prompt = _read()
    elif prompt is None:
        prompt = "" if is_terminal(sys.stdin) else _read()
    elif prompt.strip() and _is_pipe():
        piped = _read(patience=2.0)
        prompt = f"{piped.strip()}\n{prompt}" if piped.strip() else prompt
    if not prompt.strip():
        alone = bool(words) and words[0] == model
        why = f"'{model}' is a model, not a question." if alone and len(words) == 1 else ""
        hint = f'fluvial run {model} "..." asks it; fluvial chat {model} starts a conversation.' if why else _EXAMPLE
        raise UsageError("The prompt is empty.", why, hint)
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError("The prompt is not text.", "It holds bytes that are not UTF-8.") from None
    return model, prompt


def names_model(word: str) -> bool:
    """Whether the word is a bundled model's name or a folder with a config.json; found without loading anything."""
    bundled = word == DEFAULT_MODEL or (word.startswith(f"{DEFAULT_MODEL}/") and " " not in word)
    return bundled or _exists(Path(word).expanduser() / "config.json")


def _named(words: list[str]) -> tuple[str, str | None]:
    if len(words) > 2:
        quoted = " ".join(words if not names_model(words[0]) else words[1:])
        raise UsageError(
            f"There are {len(words)} words, and at most two are understood: MODEL PROMPT.",
            "Did you forget the quotes?",
            f'fluvial run "{quoted}"' if not names_model(words[0]) else f'fluvial run {words[0]} "{quoted}"',
        )
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return DEFAULT_MODEL, None
    word = words[0]
    if names_model(word):
        return word, None
    one_word = bool(word) and not any(c.isspace() for c in word)
    if one_word and _exists(Path(word).expanduser()):
        raise UsageError(
            f"'{word}' is a file or folder, not a question.",
            "Images and videos are given with -i and -v; a model's folder has a config.json.",
            _EXAMPLE,
        )
    if one_word and "/" in word:
        raise UsageError(
            f"'{word}' could be a prompt or a model's path.",
            "There is no model by that name.",
            f'As a prompt: fluvial run {DEFAULT_MODEL} "{word}"',
        )
    return DEFAULT_MODEL, word


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError, RuntimeError):  # a long prompt is no path
        return False


def _is_pipe() -> bool:
    """Whether stdin is a pipe or a file: /dev/null, terminals and the sockets of remote shells hold no prompt."""
    if sys.stdin is None or sys.stdin.closed:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, io.UnsupportedOperation):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read(patience: float | None = None) -> str:
    """All of stdin; says that it waits where nothing has come after `patience` seconds."""
    if sys.stdin is None or sys.stdin.closed:
        return ""
    if is_terminal(sys.stdin):
        note("Type the prompt; Ctrl-D ends it.")
    elif patience is not None and os.name == "posix" and not select.select([sys.stdin], [], [], patience)[0]:
        note("Waiting for the piped input to end. Where none is meant, add </dev/null.")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UsageError("The prompt is not text.", "What is piped in is not UTF-8.") from None

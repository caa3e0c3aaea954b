"""What a slash command is, which one a line means, and how a line goes on when Tab is pressed."""

from __future__ import annotations

import contextlib
import difflib
import glob
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluvial.adapters.errors import UsageError
from fluvial.cli.conversation import Conversation
from fluvial.cli.options import SETTINGS

Action = Callable[[Conversation, str], bool | None]


@dataclass(frozen=True)
class Command:
    """`usage` is what stands after the name; `run` returns False to leave the chat."""

    usage: str
    example: str
    help: str
    run: Action


COMMANDS: dict[str, Command] = {}


def command(name: str, usage: str = "", example: str = "") -> Callable[[Action], Action]:
    def register(action: Action) -> Action:
        COMMANDS[name] = Command(usage, example, (action.__doc__ or "").strip(), action)
        return action

    return register


def obey(talk: Conversation, line: str) -> bool:
    """Runs `/name argument`; False where the chat is to end."""
    name, _, argument = line[1:].strip().partition(" ")
    found, argument = COMMANDS.get(name), argument.strip()
    if found is None:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"Did you mean /{close[0]}?" if close else "/help lists them; a space before it makes it a message."
        raise UsageError(f"There is no command /{name}.", "", hint)
    if argument and not found.usage:
        raise UsageError(f"/{name} takes nothing after it.")
    if not argument and found.usage and not found.usage.startswith("["):
        raise UsageError(f"/{name} needs a {found.usage.lower()}.", "", f"For example: /{name} {found.example}")
    return found.run(talk, argument) is not False


def completions(line: str) -> list[str]:
    """Whole lines that the beginning of a line may become: command names, files, settings."""
    name, space, argument = line.partition(" ")
    if not line.startswith("/"):
        return []
    if not space:
        return [f"/{each} " if about.usage else f"/{each}" for each, about in COMMANDS.items()]
    if name == "/set":
        return [f"/set {setting} " for setting in SETTINGS]
    if (known := COMMANDS.get(name[1:])) is not None and known.usage == "FILE":
        files = sorted(glob.glob(glob.escape(os.path.expanduser(argument)) + "*"))
        return [f"{name} {path}{'/' if os.path.isdir(path) else ''}" for path in files]
    return []


def one_path(argument: str) -> Path:
    paths = paths_in(argument)
    if len(paths) != 1:
        raise UsageError("One file name is needed.", "", "Put quotes around a name with spaces.")
    return Path(paths[0])


def paths_in(argument: str) -> list[str]:
    """One path with spaces, or several as a shell would split them; `~` is the home folder."""
    paths = [argument]
    if not Path(argument).expanduser().exists():
        with contextlib.suppress(ValueError):  # a lone quote
            paths = shlex.split(argument)
    return [str(Path(path).expanduser()) for path in paths]

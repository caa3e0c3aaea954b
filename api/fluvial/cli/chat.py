"""`fluvial chat`: a conversation in the terminal, or read from a pipe line by line.

Ctrl-C stops the answer, Ctrl-D leaves, and nothing that goes wrong inside ends the chat.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from fluvial.cli import chat_commands, lines, slash  # noqa: F401  (the commands register themselves)
from fluvial.cli.console import is_terminal, note, size
from fluvial.cli.conversation import Branch, Conversation
from fluvial.cli.errors import show
from fluvial.cli.interrupts import Interrupts
from fluvial.cli.options import Options
from fluvial.cli.talking import load_engine, open_session
from fluvial.cli.words import DEFAULT_MODEL

if TYPE_CHECKING:
    from fluvial.engine.engine import Engine


def chat(
    options: Options,
    model: Annotated[str, Argument(metavar="[MODEL]", help="A bundled model or a folder.")] = DEFAULT_MODEL,
) -> None:
    """Talk with a model, show it images and videos.

    Lines that begin with a slash are commands: [bold]/help[/] lists them.
    Ctrl-C stops an answer, Ctrl-D leaves.
    """
    options.check(all_media=False)
    engine = load_engine(model, options)
    talk = Conversation(engine, options, [Branch(open_session(engine, options))], stats=options.stats)
    for medium in options.media():
        talk.look(medium)
    if is_terminal(sys.stdin):
        note(_banner(engine))
        _typed(talk)
    else:
        _piped(talk)
    if options.save_state is not None:
        talk.session.save(options.save_state.expanduser())
        note(f"Saved to {options.save_state}.")


def _typed(talk: Conversation) -> None:
    with Interrupts() as interrupts:
        for line in lines.typed(slash.completions, interrupts):
            try:
                with interrupts.allowed():
                    if not _obey(talk, line):
                        return
            except KeyboardInterrupt:
                note("Stopped.")


def _piped(talk: Conversation) -> None:
    for line in lines.piped():
        if not _obey(talk, line):
            return


def _obey(talk: Conversation, line: str) -> bool:
    """Answers or obeys one line; False where it says to leave."""
    try:
        if line.startswith("/"):
            return slash.obey(talk, line)
        if line.strip():
            talk.ask(line.strip())
    except BrokenPipeError:
        raise
    except Exception as error:
        show(error)
    return True


def _banner(engine: Engine) -> str:
    about = engine.explain()
    memory = "constant" if about["state"] == "constant" else about["state"]
    state = f"{size(about['state_bytes'])}, " if about["state_bytes"] else ""
    return (
        f"{about['model']} · {about['parameters'] / 1e6:.1f} million parameters · memory: {state}{memory}\n"
        "/image FILE shows an image · /help lists the commands · Ctrl-D leaves"
    )

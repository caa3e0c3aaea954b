"""`fluvial run`: one question, one answer."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from fluvial.cli.console import answer, note
from fluvial.cli.options import Options
from fluvial.cli.talking import figures, load_engine, open_session, show_medium, stream_answer
from fluvial.cli.words import model_and_prompt

if TYPE_CHECKING:
    from fluvial.engine.events import Usage

JSON_VERSION = 1
INTERRUPTED = "interrupted"


def run(
    options: Options,
    words: Annotated[
        list[str] | None,
        Argument(metavar="[MODEL] [PROMPT|-]", help="The question, after the model's name if it is not pebble."),
    ] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object instead of text.", rich_help_panel="Output")
    ] = False,
    stream: Annotated[
        bool,
        Option(
            "--stream",
            help="With --json: one line for each piece. [dim]Text streams anyway.[/]",
            rich_help_panel="Output",
        ),
    ] = False,
) -> None:
    """Ask about images, videos or text.

    One word or quoted text is the prompt, for [bold]pebble[/], the bundled model.
    With two, the first is the model. A model's name alone is not a prompt.

    Text piped in is the prompt where none is given or where it is [bold]-[/];
    otherwise it stands before the prompt.

    [dim]fluvial run -i photo.jpg "What colour is the circle?"
    fluvial run pebble -v clip.mp4 --fps 2 "What appears first?"[/]
    """
    model, prompt = model_and_prompt(words or [])
    options.check(all_media=True)
    engine = load_engine(model, options)
    session, warnings, pieces = open_session(engine, options), list[str](), list[str]()
    for medium in options.media():
        show_medium(session, medium, warnings)

    def out(piece: str) -> None:
        pieces.append(piece)
        if not as_json:
            answer(piece)
        elif stream:
            _line({"event": "token", "text": piece})

    def report(answer_text: str, reason: str, usage: Usage | None) -> None:
        shown: dict[str, Any] = {"event": "done"} if stream else {}
        shown |= {"model": engine.model.name, "prompt": prompt, "answer": answer_text, "reason": reason}
        _line(shown | {"usage": asdict(usage) if usage else None, "warnings": warnings})

    try:
        done = stream_answer(session, prompt, options, out)
    except KeyboardInterrupt:
        if as_json:
            report("".join(pieces), INTERRUPTED, None)
        raise
    finally:
        if pieces and not as_json:
            answer("\n")
    if as_json:
        report(done.text, done.reason, done.usage)
    elif not pieces:
        answer("\n")
    if options.save_state is not None:
        session.save(options.save_state.expanduser())
        note(f"Saved to {options.save_state}.")
    if options.stats:
        note(figures(done.usage))


def _line(shown: dict[str, Any]) -> None:
    print(json.dumps({"v": JSON_VERSION, **shown}, ensure_ascii=False), flush=True)

"""The slash commands of a chat. A function each; its docstring is what `/help` says."""

from __future__ import annotations

from fluvial.adapters.errors import UsageError
from fluvial.cli.console import note, size
from fluvial.cli.conversation import Conversation
from fluvial.cli.options import SETTINGS
from fluvial.cli.plugins import blend
from fluvial.cli.slash import COMMANDS, command, one_path, paths_in
from fluvial.cli.talking import figures


@command("image", "FILE", "photo.jpg")
def _image(talk: Conversation, argument: str) -> None:
    """show it an image"""
    for path in paths_in(argument):
        talk.look(talk.options.image_at(path))


@command("video", "FILE", "clip.mp4")
def _video(talk: Conversation, argument: str) -> None:
    """show it a video; /set fps, frames, max-frames say how much of it"""
    for path in paths_in(argument):
        talk.look(talk.options.video_at(path))


@command("camera", "[NUMBER [SECONDS]]")
def _camera(talk: Conversation, argument: str) -> None:
    """look through a camera (0) for some seconds (5); Ctrl-C ends it"""
    number, seconds = ([*argument.split(), "0", "5"] if not argument else [*argument.split(), "5"])[:2]
    if not number.isdecimal() or not seconds.replace(".", "", 1).isdecimal() or not float(seconds):
        raise UsageError(f"/camera {argument} is not known.", "", "For example: /camera 0 5")
    from fluvial.encoders.live_sources import open_source

    talk.watch(open_source(int(number), fps=talk.options.fps), f"camera {number}", float(seconds))


@command("undo")
def _undo(talk: Conversation, _: str) -> None:
    """take back the last question, image or video"""
    note(f"Undone: {talk.undo()}.")


@command("fork", "[NUMBER]")
def _fork(talk: Conversation, argument: str) -> None:
    """go on in a copy of the conversation; with a number, go to that branch"""
    source = talk.at + 1
    if not argument:
        talk.fork()
        note(f"In branch {talk.at + 1}, a copy of branch {source}; /fork {source} goes back.")
        return
    talk.go_to(int(argument) if argument.isdecimal() else 0)
    note(f"In branch {talk.at + 1} of {len(talk.branches)}.")


@command("clear")
def _clear(talk: Conversation, _: str) -> None:
    """begin anew, with the same system prompt"""
    talk.begin_anew(talk.system, "/clear")
    note("Cleared.")


@command("system", "[TEXT]")
def _system(talk: Conversation, argument: str) -> None:
    """show the system prompt, or begin anew with another"""
    if not argument:
        note(talk.system or "There is no system prompt.")
        return
    anew = talk.session.position > 0
    talk.begin_anew(argument, "/system")
    note(
        "The conversation begins anew with that system prompt; /undo goes back."
        if anew
        else "The system prompt is set."
    )


@command("save", "FILE", "talk.state")
def _save(talk: Conversation, argument: str) -> None:
    """save the conversation"""
    path = one_path(argument)
    talk.session.save(path)
    note(f"Saved to {path} ({size(path.stat().st_size)}).")


@command("load", "FILE", "talk.state")
def _load(talk: Conversation, argument: str) -> None:
    """go on from a saved conversation"""
    path = one_path(argument)
    talk.become(talk.engine.load_session(path), f"/load {path}")
    note(f"Loaded {path}: {talk.session.position:,} tokens.")


@command("plugin", "[PATH[=WEIGHT]|off]")
def _plugin(talk: Conversation, argument: str) -> None:
    """show the plugins, or go on with one or several of them, or with none: off"""
    if argument:
        talk.use(blend(talk.engine, () if argument == "off" else paths_in(argument)))
    using = talk.session.plugin
    for info in talk.engine.plugins.list():
        weight = f", weight {using[info.name]:g}" if info.name in using else ""
        note(f"{'*' if weight else ' '} {info.name} ({info.kind}){weight}")
    if not using:
        note("No plugin acts: this is the base model.")


@command("set", "[NAME VALUE]")
def _set(talk: Conversation, argument: str) -> None:
    """show the settings, or change one: /set temp 0.7, /set temp off"""
    if not argument:
        for name in SETTINGS:
            value = talk.options.setting(name)
            note(f"{name:15} {'off' if value is None else ' '.join(value) if isinstance(value, list) else value}")
        return
    name, _, text = argument.partition(" ")
    if not text.strip():
        raise UsageError(f"/set {name} needs a value.", "", "For example: /set temp 0.7")
    talk.options = talk.options.with_setting(name, text.strip())
    note(f"{name} is {text.strip()}.")


@command("stats", "[on|off]")
def _stats(talk: Conversation, argument: str) -> None:
    """the last answer's tokens, speed and memory; on: after each answer"""
    if argument not in ("", "on", "off"):
        raise UsageError(f"/stats {argument} is not known.", "", "/stats, /stats on or /stats off.")
    if argument:
        talk.stats = argument == "on"
        note(f"Figures after each answer: {argument}.")
    else:
        note(figures(talk.last) if talk.last else "No answer yet.")


@command("memory")
def _memory(talk: Conversation, _: str) -> None:
    """what the conversation holds"""
    tape = talk.session.nbytes("tape")
    note(f"{talk.session.position:,} tokens in {len(talk.session.messages):,} messages")
    note(f"{size(talk.session.nbytes('recurrent'))} of state, whatever the length")
    note(f"{size(tape)} of attention tape, growing" if tape else "no attention tape: nothing grows")
    note(f"branch {talk.at + 1} of {len(talk.branches)}, {len(talk.branch.past)} steps to undo")


@command("help")
def _help(_: Conversation, __: str) -> None:
    """this list"""
    for name, known in COMMANDS.items():
        note(f"/{name} {known.usage}".ljust(20) + known.help)
    note('""" begins and ends a message of several lines. Ctrl-C stops the answer, Ctrl-D leaves.')


@command("bye")
def _bye(_: Conversation, __: str) -> bool:
    """leave"""
    return False

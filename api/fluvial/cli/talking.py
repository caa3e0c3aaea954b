"""What `run` and `chat` do alike: load a model, show it media, stream an answer, print figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from fluvial.adapters.errors import FluvialError
from fluvial.cli.console import frames_read, size, visible, waiting, warn
from fluvial.cli.options import Options
from fluvial.cli.plugins import blend

if TYPE_CHECKING:
    from fluvial.engine.engine import Engine
    from fluvial.engine.events import Done, PushResult, Usage
    from fluvial.engine.media import Image, Video
    from fluvial.engine.session import Session


def load_engine(name: str, options: Options) -> Engine:
    """Loads the model, after the options of the answers were checked (which takes torch too)."""
    with waiting(f"Loading {name}"):
        options.sampling()
        from fluvial.engine.engine import load

        return load(
            name,
            dtype=options.dtype,
            quant=options.quant,
            state_dtype=options.state_dtype,
            draft=options.draft,
            cache=options.state_cache(),
            kv=options.kv,
            offline=options.offline,
        )


def open_session(engine: Engine, options: Options) -> Session:
    """A new conversation, or the saved one; with plugins, if any are named."""
    plugin = blend(engine, options.plugin or ())
    if options.state is None:
        return engine.session(system=options.system, plugin=plugin)
    session = engine.load_session(options.state.expanduser())
    if plugin:
        session.use(plugin)
    return session


def show_medium(session: Session, medium: Image | Video, warnings: list[str]) -> PushResult:
    """Pushes an image or a video with progress; a damaged video is a warning, and what was read of it is kept."""
    from fluvial.engine.media import Video

    name = Path(str(medium.source)).name
    if isinstance(medium, Video):
        with frames_read(f"Watching {name}", _expected_frames(session, medium)) as progress:
            result = session.push(medium, progress=progress)
    else:
        with waiting(f"Looking at {name}"):
            result = session.push(medium)
    if result.warning:
        warn(result.warning)
        warnings.append(result.warning)
    return result


def _expected_frames(session: Session, video: Video) -> int | None:
    """How many frames will be looked at, from what the header says; None where it says nothing."""
    from fluvial.encoders.video import open_video

    bounds = [n for n in (video.frames, video.max_frames) if n is not None]
    try:
        with open_video(video.source) as reader:
            seconds = reader.duration
    except FluvialError:  # the push will say it better
        return None
    if video.frames is None and seconds is not None:
        bounds.append(math.ceil(seconds * (video.fps or session.model.processor.fps)))
    return min(bounds, default=None)


def stream_answer(session: Session, question: str, options: Options, out: Callable[[str], None]) -> Done:
    """Gives each piece of the answer to `out` as it comes; closing early leaves the session at the last piece."""
    from fluvial.engine.events import Done

    with closing(session.ask(question, **options.sampling())) as events:  # type: ignore[type-var]
        with waiting("Reading"):  # all that is new goes into the model before the first token
            event = next(events)
        while not isinstance(event, Done):
            if event.text:
                out(event.text)
            event = next(events)
        return event


def figures(usage: Usage) -> str:
    """One line: tokens and speed in and out, what a draft gave, memory."""
    media = f" ({usage.media_tokens:,} of media)" if usage.media_tokens else ""
    right = f"{usage.accepted_tokens:,} of {usage.drafted_tokens:,} guesses right, {usage.forwards:,} forwards"
    guessed = right if usage.drafted_tokens else "no guess was worth its cost"
    draft = "" if usage.draft == "none" else f" · draft {usage.draft}: {guessed}"
    memory = f"state {size(usage.state_bytes)}" if usage.state_bytes else ""
    tape = f"tape {size(usage.tape_bytes)}" if usage.tape_bytes else ""
    cached = f", {usage.cached_tokens:,} of them cached" if usage.cached_tokens else ""
    held = " + ".join(filter(None, (memory, tape))) or "0 bytes"
    misses = f" · not cached: {', '.join(usage.cache_misses)}" if usage.cache_misses else ""
    return visible(
        f"in: {usage.prompt_tokens:,} tokens{media}{cached}, {usage.prompt_seconds:.2f} s, {usage.prompt_rate:,.0f}/s"
        f" · out: {usage.completion_tokens:,} tokens, {usage.completion_seconds:.2f} s, {usage.completion_rate:,.0f}/s"
        f"{draft} · memory: {usage.position:,} tokens in {held}{misses}"
    )

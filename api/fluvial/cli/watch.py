"""`fluvial watch`: a file or a live source goes in, and standing questions are answered while it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from fluvial.adapters.errors import UsageError
from fluvial.cli.console import answer, is_terminal, note, size, stderr, warn
from fluvial.cli.options import Options
from fluvial.cli.talking import load_engine, open_session

if TYPE_CHECKING:
    from fluvial.engine.live import LiveSession, LiveStats
    from fluvial.engine.watch import Observation, Watch

UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")


def watch(
    source: Annotated[
        str, Argument(help="A video, a folder of pictures, camera[:N], test[:SECONDS], - (text) or an address.")
    ],
    ask: Annotated[list[str] | None, Option("--ask", metavar="TEXT", help="A standing question; repeatable.")] = None,
    every: Annotated[str, Option("--every", metavar="TIME", help="How often: 10s, 500ms, 2m.")] = "10s",
    model: Annotated[
        str, Option("--model", metavar="NAME", help="A bundled model, a folder or a hub name.")
    ] = "pebble",
    fps: Annotated[float | None, Option("--fps", metavar="RATE", help="Frames a second to look at (2).")] = None,
    queue: Annotated[int, Option("--queue", min=1, metavar="N", help="Frames of a live source that may wait.")] = 8,
    skip: Annotated[bool, Option("--skip-still", help="Leave out frames that show nothing new.")] = False,
    network: Annotated[bool, Option("--network", help="Allow an RTSP or HTTP address.")] = False,
    system: Annotated[str | None, Option("--system", "-s", metavar="TEXT", help="The system prompt.")] = None,
    max_tokens: Annotated[int, Option("--max-tokens", "-n", min=1, metavar="N", help="Of an answer.")] = 64,
    plugin: Annotated[list[str] | None, Option("--plugin", metavar="PATH[=WEIGHT]", help="A plugin.")] = None,
    dtype: Annotated[str | None, Option("--dtype", metavar="NAME", help="fp32, bf16, fp16 or fp64.")] = None,
    quant: Annotated[str | None, Option("--quant", metavar="RECIPE", help="int8, int4, int4-small ...")] = None,
    kv: Annotated[str, Option("--kv", metavar="MODE", help="Attention's rows: exact, int8 or window:N.")] = "exact",
    offline: Annotated[bool, Option("--offline", help="A hub name comes from the cache only.")] = False,
    save_state: Annotated[
        Path | None, Option("--save-state", metavar="FILE", help="Save the memory at the end.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="A JSON object for each answer, and one at the end.")] = False,
    stats: Annotated[bool, Option("--stats", help="Frames, drops, tokens and memory, on stderr.")] = False,
) -> None:
    """Ask again and again about what is seen.

    The questions do not enter the memory of the stream. Of a file every frame is
    looked at; a camera goes on, and frames that find no room are dropped.

    [dim]fluvial watch clip.mp4 --ask "What is moving?" --every 2s
    fluvial watch camera --ask "Is the gate open?" --every 10s --skip-still[/]
    """
    seconds = duration(every)
    if not ask:
        raise UsageError("There is no question.", "", 'For example: --ask "What is moving?"')
    options = Options(
        system=system, plugin=plugin, dtype=dtype, quant=quant, offline=offline, max_tokens=max_tokens, kv=kv,
        save_state=save_state,
    )  # fmt: skip
    options.check(all_media=False)
    from fluvial.encoders.economy import Economy
    from fluvial.encoders.live_sources import open_source
    from fluvial.engine.events import Done
    from fluvial.engine.live import LiveSession
    from fluvial.engine.watch import Observation

    stream = open_source(source, fps=fps, network=network)
    engine = load_engine(model, options)
    session = open_session(engine, options)
    rule: Any = "drop_oldest" if stream.live else "block"
    with LiveSession(session, queue=queue, overflow=rule, economy=Economy() if skip else None) as live:
        seen = SimpleQueue[tuple[str, Observation] | BaseException | None]()
        watches = [live.watch(question, every=seconds, **options.sampling()) for question in ask]
        readers = [
            Thread(target=_read, args=pair, daemon=True) for pair in zip(ask, watches, [seen] * len(ask), strict=True)
        ]
        for reader in readers:
            reader.start()
        feeding = live.feed(stream, live=stream.live)
        Thread(target=_end, args=(feeding, live, watches, readers, seen), daemon=True).start()
        with live_line(live):
            while (item := seen.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                _show(*item, as_json=as_json, several=len(ask) > 1)
        if live.stats().t is None:  # nothing with a time: once, about all of it
            for question in ask:
                done = list(live.ask(question, commit=False, **options.sampling()))[-1]
                assert isinstance(done, Done)
                _show(question, Observation(0.0, done.text, done), as_json=as_json, several=len(ask) > 1)
        if damage := getattr(stream, "warning", ""):
            warn(damage)
        counts = live.stats()
        if save_state is not None:
            live.save(save_state.expanduser())
            note(f"Saved to {save_state}.")
    if as_json:
        print(json.dumps({"v": 1, "event": "done", "warning": damage, "stats": asdict(counts)}), flush=True)
    if stats:
        note(line(counts))


def duration(text: str) -> float:
    """Seconds of "10s", "500ms", "2m", "1h" or a bare number. Errors: UsageError."""
    found = DURATION.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise UsageError(f"--every is '{text}'.", "It is no time.", "For example: 10s, 500ms, 2m.")
    return float(found[1]) * UNITS[found[2]]


def line(counts: LiveStats) -> str:
    """The figures of a stream in one line."""
    tape = f" + {size(counts.tape_bytes)} of tape" if counts.tape_bytes else ""
    skipped = f", {counts.skipped:,} skipped" if counts.skipped else ""
    texts = f" · {counts.texts:,} texts" if counts.texts else ""
    return (
        f"{counts.t or 0:.1f} s · {counts.frames:,} frames{skipped}, {counts.dropped:,} dropped, {counts.gaps:,} gaps"
        f"{texts} · {counts.tokens:,} tokens · {size(counts.state_bytes)} of state{tape}"
        f" · {counts.answers:,} answers, {counts.missed:,} missed"
    )


def _show(question: str, seen: Observation, *, as_json: bool, several: bool) -> None:
    if as_json:
        shown = {"event": "answer", "t": seen.t, "question": question, "answer": seen.text}
        print(json.dumps({"v": 1, **shown, "usage": asdict(seen.done.usage)}, ensure_ascii=False), flush=True)
    else:
        answer(f"[{seen.t:7.1f} s] {question + ' ' if several else ''}{' '.join(seen.text.split())}\n")


def _read(question: str, watch: Watch, seen: SimpleQueue[Any]) -> None:
    try:
        for observation in watch:
            seen.put((question, observation))
    except BaseException as error:
        seen.put(error)


def _end(feeding: Any, live: LiveSession, watches: list[Watch], readers: list[Thread], seen: SimpleQueue[Any]) -> None:
    """Waits for the end of the source and of the answers about it, then tells the reader."""
    try:
        feeding.wait()
        live.flush()
        for watch, reader in zip(watches, readers, strict=True):
            watch.close()
            reader.join()
        seen.put(None)
    except BaseException as error:
        seen.put(error)


@contextmanager
def live_line(live: LiveSession) -> Iterator[None]:
    """A line on the terminal that says how the stream goes."""
    import sys

    if not is_terminal(sys.stderr):
        yield
        return
    from rich.live import Live
    from rich.text import Text

    with Live(
        get_renderable=lambda: Text(line(live.stats()), "dim"), console=stderr(), transient=True, refresh_per_second=4
    ):
        yield

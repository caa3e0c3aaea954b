"""`Conversation`: what a chat holds. Every step of it can be undone, and it can go on in several branches.

A session's memory is a value, so a step to undo is only a snapshot from before it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fluvial.adapters.errors import UsageError
from fluvial.cli.console import answer, frames_read, note
from fluvial.cli.options import Options
from fluvial.cli.talking import figures, show_medium, stream_answer

if TYPE_CHECKING:
    from fluvial.encoders.frame import Frame, Gap
    from fluvial.engine.engine import Engine
    from fluvial.engine.events import Usage
    from fluvial.engine.media import Image, Video
    from fluvial.engine.session import Session, Snapshot

UNDO_STEPS = 100


@dataclass
class Branch:
    """One line of the conversation; `past` holds what each step was and the memory before it, oldest first."""

    session: Session
    past: list[tuple[str, Snapshot]] = field(default_factory=list)


@dataclass
class Conversation:
    """Branches of one beginning, the settings, and the figures of the last answer."""

    engine: Engine
    options: Options
    branches: list[Branch]
    at: int = 0
    stats: bool = False
    last: Usage | None = None

    @property
    def branch(self) -> Branch:
        return self.branches[self.at]

    @property
    def session(self) -> Session:
        return self.branch.session

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = self.session.messages[:1]
        return str(first[0]["content"]) if first and first[0]["role"] == "system" else None

    def look(self, medium: Image | Video) -> None:
        """Shows it an image or a video."""
        before, began = self.session.snapshot(), self.session.position
        result = show_medium(self.session, medium, [])
        kind, name = type(medium).__name__.lower(), str(medium.source)
        self._remember(f"the {kind} {name}", before)
        frames = f"{result.frames:,} frame{'s' if result.frames != 1 else ''}, " if kind == "video" else ""
        note(f"{name}: {frames}{self.session.position - began:,} tokens.")

    def watch(self, source: Iterable[Frame | Gap | str], name: str, seconds: float) -> None:
        """Shows it what a camera sees for so long; Ctrl-C ends that and keeps what was seen."""
        from fluvial.encoders.frame import Frame, Gap

        before, began, seen = self.session.snapshot(), self.session.position, 0
        try:
            with frames_read(f"Looking through {name}", None) as progress:
                for thing in source:
                    if isinstance(thing, Frame):
                        if thing.t > seconds:
                            break
                        self.session.push(thing)
                        seen += 1
                    else:
                        self.session.stream(thing.text if isinstance(thing, Gap) else thing)
                    if progress is not None:
                        progress(seen)
        finally:
            if self.session.snapshot() is not before:
                self._remember(f"what {name} saw", before)
        note(f"{name}: {seen:,} frame{'s' if seen != 1 else ''}, {self.session.position - began:,} tokens.")

    def ask(self, question: str) -> None:
        """Streams one answer; one that is stopped stays as far as it came."""
        before, written = self.session.snapshot(), False

        def out(piece: str) -> None:
            nonlocal written
            written = True
            answer(piece)

        try:
            self.last = stream_answer(self.session, question, self.options, out).usage
        finally:
            if written or sys.exception() is None:
                answer("\n")
            if len(self.session.messages) > len(before.messages):
                self._remember(f"the question “{_short(question)}”", before)
            else:  # stopped before the first token, or in the middle of the bookkeeping
                self.session.restore(before)
        if self.stats and self.last is not None:
            note(figures(self.last))

    def become(self, session: Session, label: str) -> None:
        """Goes on with another session's memory."""
        before = self.session.snapshot()
        self.session.restore(session.snapshot())
        self._remember(label, before)

    def begin_anew(self, system: str | None, label: str) -> None:
        self.become(self.engine.session(system=system, plugin=self.session.plugin), label)

    def use(self, plugin: dict[str, float]) -> None:
        """Goes on with other plugins."""
        before = self.session.snapshot()
        self.session.use(plugin)
        self._remember("/plugin", before)

    def undo(self) -> str:
        """Takes back the last step and says which it was."""
        if not self.branch.past:
            raise UsageError("There is nothing to undo.")
        label, before = self.branch.past.pop()
        self.session.restore(before)
        return label

    def fork(self) -> None:
        """Goes on in a copy of this branch."""
        self.branches.append(Branch(self.session.fork(), list(self.branch.past)))
        self.at = len(self.branches) - 1

    def go_to(self, number: int) -> None:
        """Goes to branch `number`, counted from 1."""
        if not 1 <= number <= len(self.branches):
            raise UsageError(f"There is no branch {number}.", "", f"Branches: 1 to {len(self.branches)}.")
        self.at = number - 1

    def _remember(self, label: str, before: Snapshot) -> None:
        self.branch.past = [*self.branch.past[1 - UNDO_STEPS :], (label, before)]


def _short(text: str, most: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"

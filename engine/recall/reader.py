"""How a loaded model takes a test: through its chat template, or as plain text where it has none.

Text goes in by thousands of tokens and leaves no trace but the state, so a stream may be as long as it likes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from fluvial.adapters.errors import UnsupportedError
from fluvial.encoders.frame import Frame
from fluvial.engine.answer import Answer
from fluvial.engine.events import Done
from fluvial.engine.feed import Feed
from fluvial.engine.model import Model
from fluvial.engine.recall.task import Piece
from fluvial.engine.sampling import Sampler, SamplingParams
from fluvial.engine.session import Session
from fluvial.engine.snapshot import Snapshot
from fluvial.engine.text_stream import TextStream

AT_ONCE = 2048  # tokens of text that are fed together


class Reader(Protocol):
    """Reads one stream; any number of questions are answered aside, each as if it were the only one."""

    def read(self, piece: Piece) -> int:
        """Takes the next piece; gives its length, in tokens of text or in frames."""
        ...

    def finish(self) -> None:
        """All that was read is in the state now."""
        ...

    def ask(self, question: str, max_tokens: int) -> str:
        """The greedy answer, after `finish`."""
        ...

    def nbytes(self, kind: str) -> int:
        """Bytes of the state: "recurrent" or "tape"."""
        ...

    @property
    def position(self) -> int:
        """Tokens in the state."""
        ...


class _Buffered(ABC):
    """Gathers pieces of text until there are enough to feed."""

    def __init__(self, model: Model) -> None:
        self.model, self._held, self._tokens = model, list[str](), 0

    def read(self, piece: Piece) -> int:
        if isinstance(piece, Frame):
            self.finish()
            self._see(piece)
            return 1
        count = len(self.model.tokenizer.encode(piece, special=False, first=False))
        self._held.append(piece)
        self._tokens += count
        if self._tokens >= AT_ONCE:
            self.finish()
        return count

    def finish(self) -> None:
        text, self._held, self._tokens = "".join(self._held), [], 0
        if text.strip():
            self._feed(text)

    @abstractmethod
    def _feed(self, text: str) -> None: ...

    @abstractmethod
    def _see(self, frame: Frame) -> None: ...


class ChatReader(_Buffered):
    """The stream is the beginning of a user's turn, and the question its end."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._session = Session(model)

    def _feed(self, text: str) -> None:
        self._session.stream(text)

    def _see(self, frame: Frame) -> None:
        self._session.push(frame)

    def ask(self, question: str, max_tokens: int) -> str:
        *_, done = self._session.ask(question, max_tokens=max_tokens, commit=False, temperature=0.0)
        assert isinstance(done, Done)
        return done.text

    def nbytes(self, kind: str) -> int:
        return self._session.nbytes(kind)

    @property
    def position(self) -> int:
        return self._session.position


class PlainReader(_Buffered):
    """A base model goes on with "Question: ... Answer:" until the end of the line."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._now = Feed.start(model)

    def _feed(self, text: str) -> None:
        self._now = self._now.ids(self.model.tokenizer.encode(text, special=False, first=self._now.position == 0))

    def _see(self, frame: Frame) -> None:
        raise UnsupportedError(f"{self.model.name} has no chat template.", "Pictures need one.", "Choose text tasks.")

    def ask(self, question: str, max_tokens: int) -> str:
        ids = self.model.tokenizer.encode(f"\nQuestion: {question}\nAnswer:", special=False, first=False)
        sampler = Sampler(SamplingParams(), vocab_size=self.model.tokenizer.vocab_size)
        answer = Answer(Snapshot(self._now.ids(ids)), sampler, TextStream("\n"))
        for _ in answer.tokens(max_tokens):
            pass
        return answer.text

    def nbytes(self, kind: str) -> int:
        return self._now.state.nbytes(kind)

    @property
    def position(self) -> int:
        return self._now.position


def reader(model: Model) -> Reader:
    """The one that fits the model."""
    return PlainReader(model) if model.template is None else ChatReader(model)

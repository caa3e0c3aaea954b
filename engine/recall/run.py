"""A memory test from the first draw to the last answer. Every question gives a `Row`: wrong answers are kept too."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.engine.model import Model
from fluvial.engine.recall.reader import Reader, reader
from fluvial.engine.recall.scoring import score
from fluvial.engine.recall.task import Draw, Piece, Question, Room, Task


@dataclass(frozen=True)
class Row:
    """One answer. `length` was asked for and `age` is how long ago the fact was read: tokens, or frames of a video.
    `position` counts the tokens in the state when it was asked; `score` is 1 where the answer is right."""

    task: str
    length: int
    sample: int
    turn: int
    depth: float
    age: int
    position: int
    state_bytes: int
    tape_bytes: int
    seconds: float
    question: str
    expected: tuple[str, ...]
    answer: str
    score: float


def draw_of(task: Task, length: int, sample: int, samples: int, seed: int, turn: int = 0) -> Draw:
    """Depths are spread evenly over the samples; the numbers depend on nothing but the arguments."""
    return Draw((seed, zlib.crc32(task.name.encode()), length, sample), (sample + 0.5) / samples, turn)


def run(
    model: Model,
    tasks: Sequence[Task],
    lengths: Sequence[int],
    frames: Sequence[int],
    *,
    samples: int = 8,
    seed: int = 0,
    max_tokens: int = 64,
    new: Callable[[Model], Reader] = reader,
) -> Iterator[Row]:
    """Every text task at every length in tokens, every video task at every number of frames; rows as they come.
    Errors: UsageError, and UnsupportedError where the model cannot see."""
    if samples < 1 or min([*lengths, *frames], default=1) < 1:
        raise UsageError("Samples, lengths and frames are positive numbers.")
    blind = [task.name for task in tasks if task.video and (model.tower is None or model.template is None)]
    if blind:
        raise UnsupportedError(f"{model.name} reads text only.", hint=f"Leave out {', '.join(blind)}.")
    for task in tasks:
        for length in frames if task.video else lengths:
            for sample in range(samples):
                for turn in range(task.turns):
                    draw = draw_of(task, length, sample, samples, seed, turn)
                    yield from _rows(task, draw, length, sample, new(model), max_tokens)


def _rows(task: Task, draw: Draw, length: int, sample: int, reader: Reader, max_tokens: int) -> Iterator[Row]:
    began, room = time.perf_counter(), Room(length)
    questions = pour(task, draw, room, reader.read)
    reader.finish()
    for question in questions:
        answer = reader.ask(question.text, max_tokens)
        seconds = time.perf_counter() - began
        yield Row(
            task.name, length, sample, draw.turn, round(draw.depth, 4), room.used - question.since, reader.position,
            reader.nbytes("recurrent"), reader.nbytes("tape"), round(seconds, 3), question.text, question.answers,
            answer, score(answer, question),
        )  # fmt: skip
        began = time.perf_counter()


def pour(task: Task, draw: Draw, room: Room, read: Callable[[Piece], int]) -> list[Question]:
    """Gives the whole stream to `read`, which says how long each piece was; returns the questions about it."""
    stream = task.stream(draw, room)
    while True:
        try:
            room.used += read(next(stream))
        except StopIteration as end:
            questions: list[Question] = end.value
            return questions
